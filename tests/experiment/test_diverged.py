"""An experiment of which networks diverge: they are recorded, what stands on them is left out, all else is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_lottery import LotteryConfig
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import Network
from tests.experiment.test_experiment import control
from tests.tiny import Net, make_trainer

MUCH = {"learning_rate": 1e38, "optim": "sgd"}


def make_experiment(root, diverges, made=None, **config):
    """Two replicates of two rounds. A trainer diverges if `diverges(replicate, how many it has had)` says so."""

    def make(seed: int, folder: Path):
        replicate = seed - 42
        made.append(replicate)
        torch.manual_seed(seed)
        settings = {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "constant", "max_steps": 6}
        settings |= MUCH if diverges(replicate, made.count(replicate)) else {}
        lottery = LotteryConfig(num_rounds=2, pruning_rate=0.4, **config)
        return make_trainer(folder, model=Net(), lottery_config=lottery, seed=seed, **settings)

    made = [] if made is None else made
    return Experiment(root, 2, 2, [control("random_mask"), control("one_shot")], 42, make)


def lines(root) -> list[dict]:
    return [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rewind_step", [0, 3])
def test_the_other_replicate_is_finished_and_has_what_it_has_alone(tmp_path, rewind_step):
    said, started = [], []
    experiment = make_experiment(tmp_path / "one", lambda replicate, count: replicate == 0, rewind_step=rewind_step)
    experiment.run(on_start=started.append, on_diverged=said.append)
    found = lines(tmp_path / "one")
    assert len(found) == 1 + 7 == len(started)
    assert (found[0]["replicate"], found[0]["round"], found[0]["diverged"]["tensor"]) == (0, 0, "first.weight")
    assert said == [
        f"replicate 0 diverged at round 0, step {found[0]['steps']} (weights of 'first.weight'); left out: "
        "replicate 0 · round 1 · ticket; replicate 0 · round 1 · one shot; replicate 0 · round 1 · random mask; "
        "replicate 0 · round 2 · ticket; replicate 0 · round 2 · one shot; replicate 0 · round 2 · random mask"
    ]
    make_experiment(tmp_path / "both", lambda replicate, count: False, rewind_step=rewind_step).run()
    whole = [line for line in lines(tmp_path / "both") if line["replicate"] == 1]
    assert [{**line, "train_seconds": 0} for line in found[1:]] == [{**line, "train_seconds": 0} for line in whole]


def test_it_is_finished_and_nothing_is_trained_at_the_next_start(tmp_path):
    make_experiment(tmp_path, lambda replicate, count: replicate == 1).run()
    before, started = lines(tmp_path), []
    again = make_experiment(tmp_path, lambda replicate, count: False)
    assert again.pending() == [] and len(again.left_out()) == 6
    again.run(on_start=started.append)
    assert started == [] and lines(tmp_path) == before


def test_a_round_that_diverges_ends_its_replicate_and_its_controls_alone(tmp_path):
    experiment = make_experiment(tmp_path, lambda replicate, count: (replicate, count) == (1, 2))  # its round 1
    experiment.run()
    diverged = [line for line in lines(tmp_path) if "diverged" in line]
    assert [(line["replicate"], line["round"], line["control"]) for line in diverged] == [(1, 1, "ticket")]
    assert len(lines(tmp_path)) == 7 + 2 and Network(1, 1, "random_mask") in experiment.left_out()


def test_a_control_that_diverges_ends_nothing(tmp_path):
    experiment = make_experiment(tmp_path, lambda replicate, count: (replicate, count) == (0, 3))
    experiment.run()
    (line,) = [line for line in lines(tmp_path) if "diverged" in line]
    assert line["control"] in ("one_shot", "random_mask") and line["round"] == 1
    assert experiment.left_out() == {} and len(lines(tmp_path)) == 14


def test_all_may_diverge(tmp_path):
    experiment = make_experiment(tmp_path, lambda replicate, count: True)
    experiment.run()
    assert [line["replicate"] for line in lines(tmp_path) if line["diverged"]] == [0, 1]
    assert len(experiment.left_out()) == 12
