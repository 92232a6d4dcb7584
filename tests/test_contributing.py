"""CONTRIBUTING.md's steps suffice: a copy of the package gets one of each kind, and a recipe then runs them all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_lottery

PACKAGE = Path(hf_lottery.__file__).parent

CRITERION = '''

def position(weights, context):
    """Later weights are worth more."""
    return {name: torch.arange(w.numel(), dtype=torch.float32).view_as(w) for name, w in weights.items()}


CRITERIA["position"] = Criterion(position)
'''
PATTERN = '''

def _prune_columns(context, scores, key):
    """In each tensor, the remaining input of the lowest total score."""
    pruned = {name: kept.clone() for name, kept in context.mask.items()}
    for name, kept in pruned.items():
        totals = scores[name].sum(0).masked_fill(~kept.any(0), float("inf"))
        kept[:, int(totals.argmin())] = False
    return Mask(pruned)


PATTERNS["column"] = Pattern(_prune_columns)
'''
CONTROL = '''

def all_ones(trainer, number, seed):
    """Every weight is 1 at the start, under the ticket's mask."""
    tensors = {name: torch.ones_like(value) for name, value in trainer.rewind_point.tensors.items()}
    _start(trainer, Search(trainer).round_folder(number).mask(), RewindPoint(0, tensors), from_rewind_point=False)


CONTROLS["all_ones"] = all_ones
'''
TASK = """
from typing import Literal

import torch
from pydantic import BaseModel
from torch.utils.data import default_collate

from hf_lottery.tasks import TaskData
from hf_lottery.tasks.building import build


class Data(BaseModel):
    task: Literal["brightest"]
    path: str = "."
    name: None = None
    images: int


def load(data, model):
    def rows(seed):
        pixels = torch.rand(data.images, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
        return [{"pixel_values": x, "labels": x.argmax()} for x in pixels]

    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    return TaskData(rows(0), rows(1), rows(2), default_collate, accuracy)


def build_model(model, data, seed):
    return build("brightest", model, seed, num_labels=4, image_size=2, num_channels=1)
"""
RECIPE = """
model: {architecture: lenet, config: {hidden_sizes: [6]}}
data: {task: brightest, images: 20}
training: {output_dir: out, max_steps: 3, per_device_train_batch_size: 5, use_cpu: true, save_strategy: no}
lottery: {num_rounds: 2, criterion: position, pattern: column}
experiment: {controls: [all_ones]}
"""


def add(path: Path, name: str, where: str, text: str = "") -> None:
    """Put `name` first in the tuple or dict that begins with `where`, and `text` at the end of the file."""
    old = path.read_text(encoding="utf-8")
    assert old.count(where) == 1, (path, where)
    path.write_text(old.replace(where, f"{where}{name}") + text, encoding="utf-8")


@pytest.fixture
def package(tmp_path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "hf_lottery", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "recipes", tmp_path / "recipes")
    return tmp_path / "hf_lottery"


def test_one_of_each_kind_is_added_as_the_page_says(package, tmp_path):
    add(package / "config.py", '"position", ', "\nCRITERIA = (")
    add(package / "config.py", '"column", ', "\nPATTERNS = (")
    add(package / "layout.py", '"all_ones", ', "\nCONTROLS = (")
    record = '"brightest": Task("hf_lottery.tasks.brightest", "AutoModelForImageClassification", "other"), '
    add(package / "task_records.py", record, "\nTASKS = {")
    for room, text in (
        ("pruning/criteria", CRITERION),
        ("pruning/patterns", PATTERN),
        ("experiment/controls", CONTROL),
    ):
        with (package / f"{room}.py").open("a", encoding="utf-8") as file:
            file.write(text)
    (package / "tasks" / "brightest.py").write_text(TASK, encoding="utf-8")
    (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")

    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for words in (["run", "toy.yaml"], ["show", "out"]):
        command = [sys.executable, "-m", "hf_lottery", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "column" in done.stdout and "all ones" in done.stdout

    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert sorted((line["round"], line["control"]) for line in lines) == [
        (0, "ticket"), (1, "all_ones"), (1, "ticket"), (2, "all_ones"), (2, "ticket"),
    ]  # fmt: skip
    # 6 neurons of 4 inputs and 4 of 6: a round takes one input of each, so 6 and 4 weights
    assert [line["kept"] for line in lines if line["control"] == "ticket"] == [48, 38, 28]
    ticket = json.loads((tmp_path / "out" / "ticket" / "ticket.json").read_text())
    assert (ticket["criterion"], ticket["pattern"]) == ("position", "column") and "task: brightest" in ticket["recipe"]
