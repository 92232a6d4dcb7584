"""Searches of data and settings for which Trainer's own way of continuing sees other data, or evaluates once more."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_lottery import LotteryConfig
from hf_lottery.training.search import Search
from tests.tiny import examples, make_trainer, same, weights

EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}


class Stream(IterableDataset):
    """Examples in a fixed order, without a length: 4 batches of 16 to a pass."""

    def __init__(self, count: int = 64):
        self.count = count

    def __iter__(self):
        return iter(examples(self.count))


class BreakOff(TrainerCallback):
    """Breaks round 1 off at a step, or without one after its last save."""

    def __init__(self, step: int | None = None):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if "round-01" in args.output_dir and state.global_step == self.step:
            raise KeyboardInterrupt

    def on_save(self, args, state, control, **kwargs):
        ended = control.should_training_stop or state.global_step == state.max_steps
        if "round-01" in args.output_dir and self.step is None and ended:
            raise KeyboardInterrupt


def search(folder, callbacks=(), config=None, **settings):
    config = LotteryConfig(**{"num_rounds": 1, **(config or {})})
    settings = {"save_strategy": "steps", "save_steps": 2, **settings}
    return make_trainer(folder, lottery_config=config, callbacks=callbacks, **settings)


def records(trainer) -> list[dict]:
    """What was logged in round 1, without times."""
    state = json.loads((Search(trainer).round_folder(1).path / "trainer_state.json").read_text())
    timed = ("runtime", "per_second", "train_loss", "total_flos")
    return [{key: v for key, v in r.items() if not any(t in key for t in timed)} for r in state["log_history"]]


@pytest.mark.parametrize("step", [4, 5, 9])
@pytest.mark.parametrize(
    "settings",
    [
        {"train": Stream()},
        {"train": Stream(80), "gradient_accumulation_steps": 2},
        {"train": Stream(), "config": {"rewind_step": 3}},
        {"ignore_data_skip": True},
        {"eval_on_start": True},
    ],
    ids=["no length", "no length, accumulated", "no length, from step 3", "data not skipped", "evaluated on start"],
)
def test_a_search_that_goes_on_ends_as_one_that_was_never_broken_off(tmp_path, settings, step):
    settings = {**EVALUATED, **settings}
    expected = search(tmp_path / "a", **settings)
    expected.find_ticket()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", [BreakOff(step)], **settings).find_ticket()
    found = search(tmp_path / "b", **settings)
    torch.manual_seed(step)  # a new process has other random numbers
    found.find_ticket()
    assert same(weights(found.model), weights(expected.model))
    assert records(found) == records(expected)


@pytest.mark.parametrize(
    "settings", [{"train": Stream()}, {"max_steps": 60, "learning_rate": 0.3}], ids=["stream", "stopped early"]
)
def test_broken_off_after_the_last_epochs_checkpoint_nothing_is_evaluated_again(tmp_path, settings):
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_validation_loss",
        "greater_is_better": False,
    }
    settings = {**best, "save_strategy": "epoch", "eval_strategy": "epoch", **settings}
    expected = search(tmp_path / "a", [EarlyStoppingCallback(1)], **settings)
    expected.find_ticket()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", [EarlyStoppingCallback(1), BreakOff()], **settings).find_ticket()
    found = search(tmp_path / "b", [EarlyStoppingCallback(1)], **settings)
    found.find_ticket()
    assert same(weights(found.model), weights(expected.model))
    assert records(found) == records(expected)


@pytest.mark.parametrize("settings", [{"metric_for_best_model": "f2"}, {"lr_scheduler_type": "reduce_lr_on_plateau"}])
def test_a_metric_that_is_not_measured_is_an_error_of_the_settings(tmp_path, settings):
    with pytest.raises(ValueError, match="not found in the evaluation metrics.* available .*eval_validation_loss"):
        search(tmp_path, **EVALUATED, **settings).find_ticket()
