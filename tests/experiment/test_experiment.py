"""Experiment: what each control changes, each network trained once by any number of workers, the output folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_lottery import LotteryConfig
from hf_lottery.experiment.controls import CONTROLS, control_seed, redraw
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import CHAINS, Network
from hf_lottery.layout import CONTROLS as NAMES
from hf_lottery.training.search import Search
from tests.experiment.two_workers import by_two_workers
from tests.tiny import Net, make_trainer, seeded_net


def control(name, rounds=None, per_ticket=1):
    return SimpleNamespace(name=name, rounds=rounds, per_ticket=per_ticket)


def make_experiment(root, controls=(), rounds=2, replicates=1, **config):
    def make(seed: int, folder: Path):
        settings = {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "constant", "max_steps": 6}
        lottery = LotteryConfig(num_rounds=rounds, pruning_rate=0.4, **config)
        return make_trainer(folder, model_init=Net, lottery_config=lottery, seed=seed, **settings)

    return Experiment(root, rounds, replicates, controls, 42, make)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("experiment")
    experiment = make_experiment(root, [control(name, [2]) for name in CONTROLS])
    experiment.run()
    return experiment


def masks(experiment, name):
    ticket, other = (experiment.folder(Network(0, 2, what)).mask() for what in ("ticket", name))
    return ticket, other


def test_the_names_of_the_controls_are_those_that_can_be_run():
    assert tuple(CONTROLS) == NAMES


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_has_the_tickets_counts_in_every_tensor(finished, name):
    ticket, other = masks(finished, name)
    assert other.counts() == ticket.counts() == {"first.weight": (104, 288), "classifier.weight": (26, 72)}
    line = finished.folder(Network(0, 2, name)).result()
    assert (line["control"], line["round"], line["density"]) == (name, 2, ticket.density())
    assert (other == ticket) == (name not in ("random_mask", "one_shot", "set", "rigl", *CHAINS))


def start(finished, name, number=2):
    """The weights that a control starts from, asked of the control itself on a fresh trainer."""
    trainer = finished.make_trainer(42, finished.root / "replicate-0")
    Search(trainer).enter_round(number)
    CONTROLS[name](trainer, number, control_seed(42, name, number, 0))
    return trainer, {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def test_what_each_control_starts_from(finished):
    theta_0 = finished.make_trainer(42, finished.root / "replicate-0")
    theta_0 = {n: p.detach().clone() for n, p in theta_0.model.named_parameters()}
    for name in CONTROLS:
        trainer, now = start(finished, name)
        for tensor, kept in trainer.mask.items():
            value, old = now[tensor], theta_0[tensor]
            assert not value[~kept].any()
            if name in ("random_mask", "one_shot", "set", "rigl"):
                assert torch.equal(value[kept], old[kept])
            elif name in CHAINS:
                trained = finished.folder(Network(0, 1, name)).trained().tensors  # its own, of the round before
                assert torch.equal(value[kept], trained[tensor][kept])
            elif name == "shuffled_weights":
                assert torch.equal(value[kept].sort().values, old[kept].sort().values)
                assert not torch.equal(value[kept], old[kept])
            elif name == "signed_reinit":
                assert torch.equal(value[kept].sign(), old[kept].sign()) and not torch.equal(value[kept], old[kept])
            else:
                assert name == "random_reinit"
                assert not (value[kept] == old[kept]).any() and (value[kept].sign() != old[kept].sign()).any()


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_dynamic_sparsity_needs_no_dense_run(tmp_path, name):
    experiment = make_experiment(tmp_path, [control(name, [1])], rounds=1, rewind_step=2)
    experiment.run()
    trainer = experiment.make_trainer(42, experiment.root / "replicate-0")
    theta_0 = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer, now = start(experiment, name, number=1)
    for tensor, kept in trainer.mask.items():
        assert torch.equal(now[tensor], theta_0[tensor] * kept)  # and not θ_2
    line = experiment.folder(Network(0, 1, name)).result()
    state = json.loads((experiment.folder(Network(0, 1, name)).path / "trainer_state.json").read_text())
    assert line["steps"] == 6 and [r["step"] for r in state["log_history"] if "grad_norm" in r] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_dynamic_sparsity_ends_with_another_mask_than_it_began_with(finished, name):
    first, _ = start(finished, name)
    last = finished.folder(Network(0, 2, name))
    assert last.mask() != first.mask and last.mask().counts() == first.mask.counts()
    for tensor, kept in last.mask().items():
        assert not last.trained().tensors[tensor][~kept].any()
    assert last.result()["fingerprint"] == last.mask().fingerprint()


def test_one_shot_is_the_dense_networks_largest_weights(finished):
    trained = finished.folder(Network(0, 0)).trained().tensors
    for tensor, kept in finished.folder(Network(0, 2, "one_shot")).mask().items():
        magnitude = trained[tensor].abs()
        assert magnitude[kept].min() >= magnitude[~kept].max()


def test_the_folder_holds_what_it_should(finished):
    lines = [json.loads(line) for line in (finished.root / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 3 + len(CONTROLS) + len(CHAINS) == len(finished.networks())
    needed = {
        "replicate", "seed", "control", "sample", "round", "density", "kept", "prunable", "steps", "eval_loss",
        "test_loss", "early_stop_step", "early_stop_test_loss", "train_seconds", "fingerprint", "densities",
    }  # fmt: skip
    for line in lines:
        assert needed <= line.keys()
        folder = Network.of_line(line).folder(finished.root)
        state = json.loads((folder / "trainer_state.json").read_text())
        losses = {r["step"]: r["eval_validation_loss"] for r in state["log_history"] if "eval_validation_loss" in r}
        assert line["early_stop_step"] == min(losses, key=losses.get) and line["eval_loss"] == losses[6]
    assert (finished.root / "replicate-0" / "rewind" / "rewind.safetensors").is_file()


def test_nothing_is_trained_twice(finished):
    started = []
    finished.run(on_start=started.append)
    assert started == []


def _work(root, started):
    torch.set_num_threads(1)
    make_experiment(root, [control("random_reinit", per_ticket=2)], replicates=2).run(
        on_start=lambda network: started.append(str(network)), poll_seconds=0.05
    )


def test_two_workers_share_the_networks_and_get_what_one_gets(tmp_path):
    started = by_two_workers(_work, tmp_path / "two")
    assert set(started.values()) == {1} and len(started) == 14
    _work(tmp_path / "one", [])

    def lines(folder):
        return [
            {key: value for key, value in json.loads(line).items() if key != "train_seconds"}
            for line in (tmp_path / folder / "results.jsonl").read_text().splitlines()
        ]

    assert lines("two") == lines("one")


def test_replicates_and_samples_differ(tmp_path):
    experiment = make_experiment(tmp_path, [control("random_reinit", per_ticket=2)], rounds=1, replicates=2)
    experiment.run()
    losses = [experiment.folder(network).result()["eval_loss"] for network in experiment.networks()]
    assert len(losses) == 8 == len(set(losses))


def test_redraw_leaves_model_and_random_numbers_alone():
    model = seeded_net()
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    one, again, other = redraw(model, 1, Net), redraw(model, 1, Net), redraw(model, 2, Net)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert torch.equal(one.tensors["first.weight"], again.tensors["first.weight"])
    assert not torch.equal(one.tensors["first.weight"], other.tensors["first.weight"])


def test_a_control_at_a_round_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="random_mask is asked for at round 3; rounds are 1 to 2"):
        make_experiment(tmp_path, [control("random_mask", [3])])


def test_one_shot_takes_whole_groups_where_the_ticket_does(tmp_path):
    experiment = make_experiment(tmp_path, [control("one_shot", [2])], pattern="neuron")
    experiment.run()
    dense = experiment.folder(Network(0, 0)).trained().tensors
    at_once = experiment.folder(Network(0, 2, "one_shot")).mask()
    for name, kept in at_once.items():
        rows = kept.flatten(1)
        assert (rows.all(1) | ~rows.any(1)).all()  # a neuron's weights go together
        worth, stays = dense[name].abs().flatten(1).mean(1), rows.any(1)
        assert 0 < stays.sum() == len(stays) - round(0.64 * len(stays))  # 1 − 0.6²
        assert worth[stays].min() >= worth[~stays].max()


@pytest.mark.parametrize("config", [{"scope": "erk"}, {"scope": "global", "pruning_rates": {"classifier": 0}}])
def test_one_shot_of_one_round_is_the_ticket_whatever_the_scope(tmp_path, config):
    experiment = make_experiment(tmp_path, [control("one_shot", [1])], rounds=1, **config)
    experiment.run()
    ticket, at_once = (experiment.folder(network).mask() for network in experiment.networks() if network.round == 1)
    assert at_once == ticket


def test_a_random_mask_takes_whole_groups_where_the_ticket_does(tmp_path):
    experiment = make_experiment(tmp_path, [control("random_mask", [1], 3)], rounds=1, pattern="neuron")
    experiment.run()
    ticket = experiment.folder(Network(0, 1)).mask()
    found = [experiment.folder(Network(0, 1, "random_mask", sample)).mask() for sample in range(3)]
    for mask in found:
        assert mask.counts() == ticket.counts() and mask != ticket
        assert all((kept.all(1) | ~kept.any(1)).all() for kept in mask.values())
    assert len({mask.fingerprint() for mask in found}) == 3
