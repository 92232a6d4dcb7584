"""SIGTERM and Ctrl-C: a run stops at the next step with a checkpoint, says how it goes on, and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_lottery.folder_lock import FolderLock
from hf_lottery.mask import Mask
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.run import claim_output_folder
from hf_lottery.ticket.rewind_point import RewindPoint
from tests.tiny import same

STEPS = 400
SMALL = [
    f"training.max_steps={STEPS}", "training.eval_steps=200", "lottery.num_rounds=1", "training.use_cpu=true",
    "model.config.hidden_sizes=[16]",
]  # fmt: skip


def start(folder, *words) -> subprocess.Popen:
    run = [sys.executable, "-m", "hf_lottery", "run", "quickstart", *SMALL, f"training.output_dir={folder}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def found(folder: Path) -> dict:
    """Folder of a network -> its line without times, mask and trained weights."""
    networks = {}
    for path in sorted(folder.rglob("result.json")):
        line = json.loads(path.read_text())
        line = {key: value for key, value in line.items() if key not in ("train_seconds", "files", "sha256")}
        mask, weights = path.with_name("mask.safetensors"), path.with_name("trained.safetensors")
        networks[str(path.parent.relative_to(folder))] = (line, Mask.load(mask), RewindPoint.load(weights).tensors)
    return networks


def assert_same(folder: Path, expected: dict) -> None:
    mine = found(folder)
    assert mine.keys() == expected.keys()
    for name, (line, mask, weights) in expected.items():
        assert mine[name][0] == line and mine[name][1] == mask and same(mine[name][2], weights)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder)
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    return found(folder)


def stop(folder: Path, process: subprocess.Popen, number: int) -> str:
    """Send a signal once a network is being trained; returns what the process says."""
    deadline = time.monotonic() + 240
    while not list(folder.glob("replicate-0/rewind/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.01)  # the first step has begun
    process.send_signal(number)
    _, messages = process.communicate(timeout=280)
    return messages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stops_with_a_checkpoint_and_goes_on(tmp_path, undisturbed, number):
    process = start(tmp_path)
    messages = stop(tmp_path, process, number)
    assert process.returncode == 128 + number and "Traceback" not in messages
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert f"stopped by {name} at step" in messages and "of replicate 0 · round" in messages
    assert f"the same command goes on from here: hf-lottery run quickstart training.max_steps={STEPS}" in messages
    assert list(tmp_path.glob("replicate-0/round-*/checkpoint-*/manifest.json"))
    process = start(tmp_path)
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    assert_same(tmp_path, undisturbed)


def test_workers_stop_with_their_parent(tmp_path, undisturbed):
    process = start(tmp_path, "--workers", "2")
    messages = stop(tmp_path, process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in messages
    assert "stopped by SIGTERM" in messages and "--workers 2" in messages
    process = start(tmp_path, "--workers", "2")
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    assert_same(tmp_path, undisturbed)


def test_a_run_of_another_recipe_does_not_take_a_folder_that_is_in_use(tmp_path):
    claim_output_folder(load_recipe("quickstart", [f"training.output_dir={tmp_path}"]))
    other = load_recipe("quickstart", [f"training.output_dir={tmp_path}", "training.learning_rate=0.5"])
    lock = FolderLock(tmp_path / "replicate-0" / "round-00")
    assert lock.take()
    with pytest.raises(ValueError, match="is in use by process .* with another recipe"):
        claim_output_folder(other)
    lock.release()
    claim_output_folder(other)  # nothing was trained there


def test_two_runs_of_one_folder_share_its_networks_and_say_so(tmp_path, undisturbed):
    processes = [start(tmp_path), start(tmp_path)]
    said = [process.communicate(timeout=280) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert any("waiting for replicate 0 · round 0 · dense, which process" in output for output, _ in said)
    assert_same(tmp_path, undisturbed)
