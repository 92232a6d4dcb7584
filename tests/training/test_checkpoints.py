"""Checkpoints: a training that continues from one ends as if nothing had happened, or starts from an earlier one."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_lottery import LotteryConfig, LotteryTrainer
from hf_lottery.mask import Mask
from hf_lottery.sealed import DamagedFile
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.search import Search
from tests.tiny import make_trainer, same
from tests.training.test_broken_off import BEST, Overfits, SearchOverfits

SAVED = {"save_strategy": "steps", "save_steps": 4}
# 96 examples in batches of 16: 6 steps an epoch; max_steps is 10
SETTINGS = {
    "ends within an epoch": SAVED,
    "ends with an epoch": {**SAVED, "save_steps": 6, "max_steps": 12, "eval_strategy": "epoch"},
    "saves and evaluates at epochs' ends": {"save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": 12},
    "saves at steps, evaluates at epochs' ends": {**SAVED, "save_steps": 3, "eval_strategy": "epoch"},
    "whole epochs": {**SAVED, "max_steps": -1, "num_train_epochs": 2},
    "accumulates": {**SAVED, "gradient_accumulation_steps": 2, "max_steps": 7, "eval_strategy": "epoch"},
    "the best at the end": BEST,
    "logs seldom": {**SAVED, "logging_steps": 3},
}


class Steps(TrainerCallback):
    """Counts the steps that are trained, and breaks training off at an event."""

    def __init__(self, event: str = "", at: int = 0):
        self.event, self.at, self.count = event, at, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += 1

    def on_save(self, args, state, control, **kwargs):
        if self.event == "save" and state.global_step == self.at:
            raise KeyboardInterrupt

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.event == "epoch" and state.global_step == self.at:
            raise KeyboardInterrupt


def search(folder, callbacks=(), rounds=1, step=0, **settings):
    config = LotteryConfig(num_rounds=rounds, rewind_step=step)
    return make_trainer(folder, lottery_config=config, callbacks=callbacks, **settings)


def found(folder, rounds=1) -> list:
    """What a search has found: for each round its line, mask, trained weights and log, without times."""
    all_rounds = []
    for number in range(rounds + 1):
        path = Path(folder) / f"round-{number:02d}"
        line = json.loads((path / "result.json").read_text())
        log = json.loads((path / "trainer_state.json").read_text())["log_history"]
        kept = [{k: v for k, v in record.items() if not timed(k)} for record in log]
        line = {k: v for k, v in line.items() if k not in ("train_seconds", "files", "sha256")}
        weights = RewindPoint.load(path / "trained.safetensors").tensors
        all_rounds.append((line, Mask.load(path / "mask.safetensors"), weights, kept))
    return all_rounds


def timed(key: str) -> bool:
    return key.endswith(("_runtime", "_per_second", "_time"))


def assert_same(a: list, b: list) -> None:
    for (line, mask, weights, log), (other_line, other_mask, other_weights, other_log) in zip(a, b, strict=True):
        assert log == other_log
        assert line == other_line
        assert mask == other_mask
        assert same(weights, other_weights)


def last_files_lost(folder: Path) -> None:
    for name in ("result.json", "trained.safetensors", "mask.safetensors", "trainer_state.json"):
        (folder / name).unlink()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("step", [0, 3])
def test_a_checkpoint_at_the_last_step_is_finished_without_training(tmp_path, settings, step):
    search(tmp_path, step=step, **settings).find_ticket()
    expected = found(tmp_path)
    for number in (1, 0):
        last_files_lost(tmp_path / f"round-{number:02d}")
        steps = Steps()
        search(tmp_path, [steps], step=step, **settings).find_ticket()
        assert steps.count == 0
        assert_same(found(tmp_path), expected)


@pytest.mark.parametrize("event, at", [("save", 6), ("save", 3), ("epoch", 6)])
@pytest.mark.parametrize("name", ["saves at steps, evaluates at epochs' ends", "logs seldom"])
def test_broken_off_at_the_end_of_an_epoch(tmp_path, name, event, at):
    settings = {**SETTINGS[name], "save_steps": 3, "logging_steps": 4, "eval_strategy": "epoch"}
    search(tmp_path / "a", **settings).find_ticket()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", [Steps(event, at)], **settings).find_ticket()
    search(tmp_path / "b", **settings).find_ticket()
    assert_same(found(tmp_path / "b"), found(tmp_path / "a"))


def test_a_training_that_a_callback_stopped_is_not_trained_on(tmp_path):
    settings = {**BEST, "max_steps": 40, "learning_rate": 0.3}

    def stop():
        return EarlyStoppingCallback(early_stopping_patience=2)

    search(tmp_path, [stop()], **settings).find_ticket()
    expected = found(tmp_path)
    assert all(line["steps"] < 40 for line, *_ in expected)
    for number in (1, 0):
        last_files_lost(tmp_path / f"round-{number:02d}")
        search(tmp_path, [stop()], **settings).find_ticket()
        assert_same(found(tmp_path), expected)


def test_a_callback_with_a_state_has_it_again(tmp_path):
    settings = {**BEST, "max_steps": 40, "learning_rate": 0.3}

    def stop():
        return EarlyStoppingCallback(early_stopping_patience=3)

    search(tmp_path / "a", [stop()], **settings).find_ticket()
    expected = found(tmp_path / "a")
    before_its_last = expected[0][0]["steps"] - 2
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", [stop(), Steps("save", before_its_last)], **settings).find_ticket()
    search(tmp_path / "b", [stop()], **settings).find_ticket()
    assert_same(found(tmp_path / "b"), expected)


# --- a checkpoint with a damaged file


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """A search that was broken off in round 1 after two checkpoints, and what it would have found."""
    root = tmp_path_factory.mktemp("broken-off")
    search(root / "whole", **SAVED).find_ticket()
    with pytest.raises(KeyboardInterrupt):
        search(root / "half", [BreaksOffInRound1()], **SAVED).find_ticket()
    return root / "half", found(root / "whole")


class BreaksOffInRound1(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if "round-01" in args.output_dir and state.global_step == 8:
            raise KeyboardInterrupt


WEIGHTS = ["model.safetensors", "mask.safetensors"]
STATES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:middle], "emptied": b"", "flipped": flipped}[how])


@pytest.mark.parametrize(
    "name, how",
    [(name, how) for name in (*WEIGHTS, *STATES, "manifest.json") for how in ("removed", "flipped")]
    + [(name, how) for name in ("optimizer.pt", "manifest.json") for how in ("cut", "emptied", "a folder")],
)
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, broken_off, name, how, caplog):
    half, expected = broken_off
    shutil.copytree(half, tmp_path / "out")
    damage(tmp_path / "out" / "round-01" / "checkpoint-8" / name, how)
    steps = Steps()
    with caplog.at_level(logging.WARNING):
        search(tmp_path / "out", [steps], **SAVED).find_ticket()
    assert "does not continue from checkpoint-8" in caplog.text
    assert name in caplog.text or name == "manifest.json"
    assert steps.count == 6  # from checkpoint-4
    assert_same(found(tmp_path / "out"), expected)


@pytest.mark.parametrize("name", ["rewind.safetensors", "rng.pt", "manifest.json"])
def test_a_damaged_rewind_point_is_computed_again(tmp_path, broken_off, name, caplog):
    half, expected = broken_off
    shutil.copytree(half, tmp_path / "out")
    damage(tmp_path / "out" / "rewind" / name, "flipped")
    with caplog.at_level(logging.WARNING):
        search(tmp_path / "out", **SAVED).find_ticket()
    assert "rewind" in caplog.text and "is trained again" in caplog.text
    assert_same(found(tmp_path / "out"), expected)


@pytest.mark.parametrize("how", ["removed", "cut", "emptied", "flipped", "a folder"])
@pytest.mark.parametrize("name", ["result.json", "trained.safetensors", "mask.safetensors"])
def test_a_damaged_network_is_trained_again(tmp_path, broken_off, name, how):
    half, expected = broken_off
    shutil.copytree(half, tmp_path / "out")
    damage(tmp_path / "out" / "round-00" / name, how)
    search(tmp_path / "out", **SAVED).find_ticket()
    assert_same(found(tmp_path / "out"), expected)


def test_the_best_checkpoint_must_be_whole_too(tmp_path, caplog):
    settings = {**BEST, "max_steps": 20, "learning_rate": 0.3}
    search(tmp_path / "a", rounds=0, **settings).find_ticket()
    expected = found(tmp_path / "a", 0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # the folder has moved, too
    state = json.loads((tmp_path / "b" / "round-00" / "trainer_state.json").read_text())
    best = tmp_path / "b" / "round-00" / f"checkpoint-{state['best_global_step']}"
    assert state["best_global_step"] < 20
    last_files_lost(tmp_path / "b" / "round-00")
    search(tmp_path / "b", rounds=0, **settings).find_ticket()
    assert_same(found(tmp_path / "b", 0), expected)
    last_files_lost(tmp_path / "b" / "round-00")
    damage(best / "model.safetensors", "flipped")
    search(tmp_path / "b", rounds=0, **settings).find_ticket()
    assert_same(found(tmp_path / "b", 0), expected)


# --- a trainer that is used directly


def test_train_true_continues_from_the_last_whole_checkpoint(tmp_path):
    whole = search(tmp_path / "a", **SAVED)
    whole.train()
    broken = search(tmp_path / "b", [Steps("save", 8)], **SAVED)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    damage(tmp_path / "b" / "checkpoint-8" / "optimizer.pt", "removed")
    again = search(tmp_path / "b", **SAVED)
    again.train(resume_from_checkpoint=True)
    assert same(dict(again.model.state_dict()), dict(whole.model.state_dict()))
    with pytest.raises(DamagedFile, match=r"optimizer\.pt"):
        damage(tmp_path / "b" / "checkpoint-4" / "optimizer.pt", "flipped")
        search(tmp_path / "b", **SAVED).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))


def test_a_checkpoint_of_trainer_is_continued_from(tmp_path):
    plain = make_trainer(tmp_path / "a", cls=Trainer, **SAVED)
    plain.train()
    trainer = search(tmp_path / "a", **SAVED)
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert same(dict(trainer.model.state_dict()), dict(plain.model.state_dict()))


def test_the_best_checkpoint_may_be_trainers_own(tmp_path):
    plain = make_trainer(tmp_path, cls=Overfits, **BEST)
    plain.train()
    assert plain.state.best_global_step == 2
    trainer = search(tmp_path, cls=SearchOverfits, **BEST)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(dict(trainer.model.state_dict()), dict(plain.model.state_dict()))


def test_without_a_mask_checkpoints_are_trainers_own(tmp_path):
    make_trainer(tmp_path / "a", cls=Trainer, **SAVED).train()
    make_trainer(tmp_path / "b", cls=LotteryTrainer, **SAVED).train()
    names = [sorted(p.name for p in (tmp_path / run / "checkpoint-8").iterdir()) for run in "ab"]
    assert names[0] == names[1]


def test_more_steps_continue_a_training_that_ended(tmp_path):
    whole = search(tmp_path / "a", max_steps=16, lr_scheduler_type="constant", **SAVED)
    whole.train()
    search(tmp_path / "b", max_steps=8, lr_scheduler_type="constant", **SAVED).train()
    longer = search(tmp_path / "b", max_steps=16, lr_scheduler_type="constant", **SAVED)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 16
    assert same(dict(longer.model.state_dict()), dict(whole.model.state_dict()))


def test_older_checkpoints_stay_until_the_new_one_is_whole(tmp_path, monkeypatch):
    seen = []

    class Looks(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*")))

    trainer = search(tmp_path, [Looks()], save_total_limit=1, **SAVED)
    sealed = []
    seal = trainer.checkpoints.seal

    def watched(folder):
        sealed.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        seal(folder)

    monkeypatch.setattr(trainer.checkpoints, "seal", watched)
    trainer.train()
    assert sealed[1] == ["checkpoint-4", "checkpoint-8"] and seen[1] == ["checkpoint-8"]
    assert trainer.args.save_total_limit == 1


def test_a_search_is_one_processes_at_a_time(tmp_path):
    from hf_lottery.folder_lock import FolderLock

    lock = FolderLock(tmp_path)
    assert lock.take()
    with pytest.raises(ValueError, match="is in use by process"):
        search(tmp_path).find_ticket()
    lock.release()
    search(tmp_path).find_ticket()
    assert not (tmp_path / ".holder").exists()


def test_results_have_no_checksums(tmp_path):
    trainer = search(tmp_path, **SAVED)
    ticket = trainer.find_ticket()
    assert all("files" not in line and "sha256" not in line for line in ticket.info["results"])
    assert Search(trainer).round_folder(1).result()["round"] == 1
