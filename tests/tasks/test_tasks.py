"""A task is added in two places, its module and its record, and the records agree with what other rooms say."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Literal

import pytest
import torch
from huggingface_hub import ModelCard
from pydantic import BaseModel, ConfigDict
from torch.utils.data import default_collate
from transformers import EvalPrediction

from hf_lottery import LotteryConfig, Mask
from hf_lottery.models import LeNetConfig, SmallTransformerConfig
from hf_lottery.pruning.targets import prunable
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.build import build_trainer, load_data
from hf_lottery.task_records import TASKS, Task
from hf_lottery.tasks import TaskData, task_module
from hf_lottery.tasks.building import build
from hf_lottery.ticket.card import ticket_card
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from tests import result_lines, tiny_lm

RECIPE = """\
model: {architecture: lenet, config: {hidden_sizes: [6]}}
data: {task: brightest_corner, path: ".", images: 40}
training: {max_steps: 4, per_device_train_batch_size: 5, use_cpu: true, learning_rate: 0.01}
lottery: {num_rounds: 1, pruning_rate: 0.25}
"""


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid")
    task: Literal["brightest_corner"] = "brightest_corner"
    path: str
    images: int


def load(data: Data, model_section=None) -> TaskData:
    def split(seed):
        pixels = torch.rand(data.images, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
        return [{"pixel_values": x, "labels": x.argmax()} for x in pixels]

    def miss_rate(prediction: EvalPrediction) -> dict[str, float]:
        return {"miss_rate": float((prediction.predictions.argmax(-1) != prediction.label_ids).mean())}

    parts = {"train": split(0), "validation": split(1), "test": split(2)}
    return TaskData(
        **parts, collator=default_collate, compute_metrics=miss_rate, metric="miss_rate", greater_is_better=False
    )


def build_model(model_section, task_data, seed):
    return build("brightest_corner", model_section, seed, num_labels=4, image_size=2, num_channels=1)


@pytest.fixture
def added(monkeypatch, tmp_path):
    """The toy task's module and record, which are all that it takes, and a recipe of it."""
    module = ModuleType("brightest_corner")
    module.Data, module.load, module.build_model = Data, load, build_model
    monkeypatch.setitem(sys.modules, "brightest_corner", module)
    record = Task("brightest_corner", "AutoModelForImageClassification", "image-classification")
    monkeypatch.setitem(TASKS, "brightest_corner", record)
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_a_module_and_a_record_add_a_task(added, tmp_path):
    recipe = load_recipe(added, [f"training.output_dir={tmp_path / 'out'}"])
    trainer = build_trainer(recipe, load_data(recipe), seed=0, folder=tmp_path / "out")
    ticket = trainer.find_ticket()
    assert ticket.mask.count() == sum(n - round(0.25 * n) for n in (4 * 6, 6 * 4))
    results = [line for line in ticket.info["results"] if line["control"] == "ticket"]
    assert [line["round"] for line in results] == [0, 1]
    logits = trainer.predict(load_data(recipe).test).predictions
    labels = torch.stack([example["labels"] for example in load_data(recipe).test])
    misses = float((torch.tensor(logits).argmax(-1) != labels).float().mean())
    assert results[-1]["test_miss_rate"] == pytest.approx(misses)


def test_a_new_tasks_section_is_checked_as_any_other(added):
    with pytest.raises(RecipeError, match=r"data\.imags is not a setting of the section data; did you mean 'images'"):
        load_recipe(added, ["data.imags=3"])
    with pytest.raises(RecipeError, match=r"did you mean 'brightest_corner'"):
        load_recipe(added, ["data.task=brightest_corners"])


@pytest.mark.parametrize("name", TASKS)
def test_a_record_is_what_its_module_and_transformers_know(name):
    module, record = task_module(name), TASKS[name]
    assert module.Data.model_fields["task"].default == name
    assert callable(module.load) and callable(module.build_model)
    assert record.auto().__name__ == record.auto_class
    if record.language_model:
        assert callable(module.load_rows) and "max_length" in module.Data.model_fields


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("image_classification", LeNetConfig(hidden_sizes=[3])),
        ("text_classification", SmallTransformerConfig(vocab_size=9, hidden_size=8)),
        ("causal_lm", tiny_lm.config()),
    ],
)
def test_a_ticket_names_the_task_auto_class_and_hub_tag_of_the_record(name, config):
    model = TASKS[name].auto().from_config(config)
    mask = Mask.ones(prunable(model))
    results = [{**line, "fingerprint": mask.fingerprint()} for line in result_lines.lines()]
    info = ticket_info(model, mask, RewindPoint.capture(model), LotteryConfig(), results=results, datasets=["you/set"])
    assert info["task"] == name
    text = ticket_card(info, mask.counts(), rewind_step=0, fingerprint=mask.fingerprint(), repo_id="you/name")
    assert f"{TASKS[name].auto_class}.from_config" in text
    (result,) = ModelCard(text).data.eval_results
    assert result.task_type == TASKS[name].pipeline_tag
