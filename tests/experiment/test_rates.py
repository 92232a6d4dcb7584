"""Networks at other learning rates: the same, bit for bit, as in a run whose recipe has that rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_lottery import LotteryConfig
from hf_lottery.experiment.controls import CONTROLS
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import CHAINS, Network
from hf_lottery.learning_rates import learning_rates
from hf_lottery.results.results import read_results
from tests.experiment.test_experiment import control
from tests.experiment.two_workers import by_two_workers
from tests.tiny import Net, make_trainer, same

OWN, OTHER = 0.01, 0.03
STEPS = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}


def make_experiment(root, names, own=OWN, rates=None, tune=False, rounds=2, replicates=1, config=None, **settings):
    def make(seed: int, folder: Path, learning_rate: float = own):
        lottery = LotteryConfig(num_rounds=rounds, pruning_rate=0.4, **(config or {}))
        asked = {**STEPS, "learning_rate": learning_rate, "lr_scheduler_type": "cosine_with_min_lr", "optim": "sgd"}
        asked |= {"lr_scheduler_kwargs": {"min_lr_rate": 0.5}, "seed": seed, **settings}
        return make_trainer(folder, model_init=Net, lottery_config=lottery, **asked)

    given = learning_rates(own, rates or {}, tune)
    return Experiment(root, rounds, replicates, [control(name) for name in names], 42, make, rates=given)


def without_times(line: dict) -> dict:
    gone = ("train_seconds", "recipe_learning_rate")
    return {key: value for key, value in line.items() if key not in gone}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, [name for name in CONTROLS if name not in (*CHAINS, "one_shot")]),  # their masks depend on other rounds
        ({"optim": "adafactor"}, ["random_mask"]),
        ({"optim": "adamw_torch", "lr_scheduler_type": "linear", "lr_scheduler_kwargs": None}, ["random_reinit"]),
    ],
)
def test_it_is_the_network_of_a_run_whose_recipe_has_that_rate(tmp_path, settings, names):
    """The tickets' masks are random, so that they do not depend on the learning rate of the search."""
    config = {"criterion": "random", "data_order": "fresh"}
    rates = {name: [OTHER] for name in names}
    tuned = make_experiment(tmp_path / "a", names, rates=rates, tune=True, config=config, **settings)
    tuned.run()
    plain = make_experiment(tmp_path / "b", names, own=OTHER, config=config, **settings)
    plain.run()
    for network in plain.networks():
        one = tuned.folder(Network(0, network.round, network.control, learning_rate=OTHER))
        two = plain.folder(network)
        assert same(one.trained().tensors, two.trained().tensors), network
        assert one.mask() == two.mask() and without_times(one.result()) == without_times(two.result())
        if network.control == "ticket":
            own = tuned.folder(network)
            assert not same(own.trained().tensors, one.trained().tensors)
            assert own.result()["learning_rate"] == OWN and one.result()["learning_rate"] == OTHER
            assert own.mask() == one.mask() and own.result()["recipe_learning_rate"] == OWN


@pytest.mark.parametrize("retraining", ["learning_rate_rewinding", "fine_tuning"])
def test_a_ticket_that_is_not_rewound_goes_on_from_the_searchs_weights(tmp_path, retraining):
    config, settings = {"retraining": retraining}, {"lr_scheduler_type": "constant"}
    experiment = make_experiment(tmp_path, ["set"], rates={"set": OTHER}, tune=True, config=config, **settings)
    experiment.run()
    trainer = experiment.trainer(Network(0, 1, learning_rate=OTHER))
    before = experiment.folder(Network(0, 0)).trained()
    before.restore(trainer.model)
    trainer.rewinding.load(trainer.args)
    trainer.replay.last_lr_factor = 1.0
    trainer.mask = experiment.folder(Network(0, 1)).mask()
    trainer.args.output_dir = str(tmp_path / "alone")
    trainer.rewind(retraining)
    trainer.train()
    found = experiment.folder(Network(0, 1, learning_rate=OTHER)).trained().tensors
    assert all(torch.equal(found[name], p) for name, p in trainer.model.named_parameters())


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_at_another_rate_stands_on_itself(tmp_path, name):
    settings = {"lr_scheduler_type": "constant"}
    experiment = make_experiment(tmp_path, [name], rates={name: [OWN, OTHER]}, **settings)
    experiment.run()
    own, other = (
        [experiment.folder(Network(0, number, name, 0, rate)) for number in (1, 2)] for rate in (None, OTHER)
    )
    assert own[0].mask() == other[0].mask()  # of the one dense network
    magnitude, mask = other[0].trained().tensors, other[1].mask()
    for tensor, kept in mask.items():
        alive = other[0].mask()[tensor]
        assert magnitude[tensor][kept].abs().min() >= magnitude[tensor][alive & ~kept].abs().max()
    assert mask != own[1].mask() and [folder.result()["chain"] for folder in other] == [1, 2]


def test_the_search_is_the_same_with_and_without_other_rates(tmp_path):
    tuned = make_experiment(tmp_path / "a", ["random_mask"], rates={"random_mask": [OWN, OTHER]}, tune=True)
    plain = make_experiment(tmp_path / "b", ["random_mask"])
    for experiment in (tuned, plain):
        experiment.run()
    assert len(tuned.networks()) == 2 * len(plain.networks())
    for network in plain.networks():
        one, two = tuned.folder(network).result(), plain.folder(network).result()
        assert without_times(one) == without_times(two) and "recipe_learning_rate" not in two
    results = read_results(tuned.root)
    assert results.missing(tuned.networks()) == [] and len(results.lines) == len(plain.networks())


def _work(root, started):
    torch.set_num_threads(1)
    rates = {"random_mask": [0.003, OWN, OTHER], "no_rewinding": [OTHER]}
    settings = {"rates": rates, "tune": True, "rounds": 1, "replicates": 2, "max_steps": 4}
    make_experiment(root, list(rates), lr_scheduler_type="constant", **settings).run(
        on_start=lambda network: started.append(str(network)), poll_seconds=0.05
    )


def test_two_workers_share_them_and_get_what_one_gets(tmp_path):
    started = by_two_workers(_work, tmp_path / "two")
    assert set(started.values()) == {1} and len(started) == 2 * (2 * 3 + 3 + 1)
    _work(tmp_path / "one", [])

    def lines(folder):
        text = (tmp_path / folder / "results.jsonl").read_text()
        return [without_times(json.loads(line)) for line in text.splitlines()]

    assert lines("two") == lines("one")


def test_one_that_diverges_ends_nothing_but_itself_and_its_own_chain(tmp_path):
    names, rates = ["random_mask", "no_rewinding"], {"random_mask": [1e20], "no_rewinding": [OWN, 1e20]}
    settings = {"rates": rates, "tune": True, "lr_scheduler_type": "constant"}
    experiment = make_experiment(tmp_path, names, **settings)
    said = []
    experiment.run(on_diverged=said.append)
    assert experiment.pending() == []
    assert experiment.left_out() == {
        Network(0, 2, "no_rewinding", 0, 1e20): Network(0, 1, "no_rewinding", 0, 1e20),
    }
    assert len(said) == 3 + 2 + 1 and all("at learning rate 1e+20 diverged at round" in one for one in said)
    results = read_results(tmp_path)
    assert {group: choice.rate for group, choice in results.choices.items() if group[0] != "random_mask"} == {
        ("ticket", 0): OWN, ("ticket", 1): OWN, ("ticket", 2): OWN, ("no_rewinding", 1): OWN, ("no_rewinding", 2): OWN,
    }  # fmt: skip
    assert not results.notes and results.missing(experiment.networks()) == []


@pytest.mark.parametrize("file", ["result.json", "trained.safetensors", "mask.safetensors"])
def test_a_damaged_file_of_one_has_it_alone_trained_again(tmp_path, file):
    experiment = make_experiment(tmp_path, ["random_mask"], rates={"random_mask": OTHER}, tune=True, rounds=1)
    experiment.run()
    network = Network(0, 1, learning_rate=OTHER)
    before = experiment.folder(network).result()
    path = experiment.folder(network).path / file
    path.write_bytes(path.read_bytes()[:-9])
    again, started = make_experiment(tmp_path, ["random_mask"], rates={"random_mask": OTHER}, tune=True, rounds=1), []
    again.run(on_start=started.append)
    if file == "result.json":
        assert started == [network]
        assert without_times(again.folder(network).result()) == without_times(before)
    else:
        assert started == []  # nothing needs it
