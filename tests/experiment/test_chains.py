"""Controls that search for a mask of their own: a chain equals a search, and survives what tickets survive."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from hf_lottery import LotteryConfig
from hf_lottery.experiment.chains import continue_chain
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import CHAINS, TRAINED_FILE, Network
from hf_lottery.results.diverged import DivergedError
from hf_lottery.results.results import read_results
from hf_lottery.training.search import Search
from tests.experiment.test_experiment import control
from tests.experiment.two_workers import by_two_workers
from tests.tiny import Net, make_trainer, same

RETRAINING = {"no_rewinding": "fine_tuning", "learning_rate_rewinding": "learning_rate_rewinding"}
SETTINGS = {
    "max_steps": 6,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.25},
}


def by_size(weights, context):
    """A criterion of a user, which sees the mask of the round before."""
    return {name: weight.detach().abs() + context.mask[name].float() for name, weight in weights.items()}


def adapted() -> PeftModel:
    return get_peft_model(Net(), LoraConfig(target_modules=["first"], modules_to_save=["classifier"], r=4))


CONFIGS = {
    "from the start": {},
    "from step 2": {"rewind_step": 2},
    "pruned to init": {"pruned_value": "init"},
    "a function": {"criterion": by_size},
    "random": {"criterion": "random", "scope": "global"},
    "neurons": {"pattern": "neuron", "pruning_rates": {"classifier": 0.0}},
    "LoRA from step 2": {"pattern": "rank", "rewind_step": 2},
}


def config(rounds=2, **options) -> LotteryConfig:
    return LotteryConfig(num_rounds=rounds, pruning_rate=0.4, **options)


def make_experiment(
    root, controls, rounds=2, replicates=1, callbacks=(), config_options=None, model_init=Net, **settings
):
    def make(seed: int, folder: Path):
        lottery = config(rounds, **(config_options or {}))
        given = {**SETTINGS, **settings}
        return make_trainer(
            folder, model_init=model_init, lottery_config=lottery, seed=seed, callbacks=callbacks, **given
        )

    return Experiment(root, rounds, replicates, controls, 42, make)


def lines(root) -> dict[Network, dict]:
    found = [json.loads(line) for line in (Path(root) / "results.jsonl").read_text().splitlines()]
    return {Network.of_line(line): {**line, "train_seconds": 0} for line in found}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_chain_is_a_whole_search_with_this_retraining_bit_for_bit(tmp_path, options):
    model_init, plan = adapted if options.get("pattern") == "rank" else Net, [control(name, [2]) for name in CHAINS]
    experiment = make_experiment(tmp_path / "run", plan, config_options=options, model_init=model_init)
    experiment.run()
    for name, retraining in RETRAINING.items():
        lottery = config(retraining=retraining, **options)
        search = make_trainer(tmp_path / name, model_init=model_init, lottery_config=lottery, seed=42, **SETTINGS)
        search.find_ticket()
        for number in (1, 2):
            alone, chain = Search(search).round_folder(number), experiment.folder(Network(0, number, name))
            assert chain.mask() == alone.mask()
            assert same(chain.trained().tensors, alone.trained().tensors)
            assert chain.result()["eval_loss"] == alone.result()["eval_loss"]
            assert (chain.result()["chain"], chain.result()["density"]) == (number, alone.result()["density"])
        ticket = experiment.folder(Network(0, 2))
        assert not same(ticket.trained().tensors, experiment.folder(Network(0, 2, name)).trained().tensors)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_train_prune_and_train_on_by_hand(tmp_path, name):
    """Trainer and pruning steps alone, without Search: the trained weights are kept, and only the rates differ."""
    experiment = make_experiment(tmp_path / "run", [control(name, [2])])
    experiment.run()
    trainer = make_trainer(tmp_path / "hand", model_init=Net, lottery_config=config(), seed=42, **SETTINGS)
    trainer.train()
    for number in (1, 2):
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        mask = trainer.prune()
        for tensor, kept in mask.items():  # the largest of its own trained weights
            old = experiment.folder(Network(0, number - 1, name if number > 1 else "ticket")).mask()[tensor]
            magnitude = before[tensor].abs()
            assert magnitude[kept].min() >= magnitude[old & ~kept].max() and not (kept & ~old).any()
        trainer.restart(retraining=RETRAINING[name])
        for tensor, value in trainer.model.named_parameters():
            expected = before[tensor] * mask[tensor] if tensor in mask else before[tensor]
            assert torch.equal(value, expected)
        trainer.train()
        rates = [r["learning_rate"] for r in trainer.state.log_history if "learning_rate" in r]
        assert (set(rates) == {0.0025}) == (name == "no_rewinding") and rates[0] in (0.0025, 0.01)
        folder = experiment.folder(Network(0, number, name))
        assert folder.mask() == mask
        assert same(folder.trained().tensors, {n: t.detach() for n, t in trainer.model.state_dict().items()})


def test_all_rounds_of_every_sample_are_planned_and_none_of_other_controls(tmp_path):
    plan = [control("learning_rate_rewinding", [3], 2), control("one_shot", [3]), control("no_rewinding")]
    networks = make_experiment(tmp_path, plan, rounds=4).networks()
    counts = Counter((n.control, n.round) for n in networks if n.control != "ticket")
    rounds = {("learning_rate_rewinding", r): 2 for r in (1, 2, 3)} | {("no_rewinding", r): 1 for r in (1, 2, 3, 4)}
    assert counts == rounds | {("one_shot", 3): 1}
    seen = set()
    for network in networks:
        assert network.needs() is None or network.needs() in seen
        seen.add(network)


class KillAt(TrainerCallback):
    """Ends the process, as `kill -9` does, at a step of its n-th training."""

    def __init__(self, training: int, step: int):
        self.training, self.step = training, step

    def on_train_begin(self, args, state, control, **kwargs):
        self.training -= 1

    def on_step_end(self, args, state, control, **kwargs):
        if self.training == 0 and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


PLAN = [control("no_rewinding", [2]), control("learning_rate_rewinding", [2])]
SAVING = {"save_strategy": "steps", "save_steps": 2}


def _run_and_die(root, training):
    torch.set_num_threads(1)
    one = KillAt(training, 5)
    experiment = make_experiment(root, PLAN, **SAVING)
    fresh = experiment.make_trainer

    def make(*arguments):
        trainer = fresh(*arguments)
        trainer.add_callback(one)
        return trainer

    experiment.make_trainer = make
    experiment.run()


def test_killed_in_each_network_it_ends_as_if_never_killed(tmp_path):
    make_experiment(tmp_path / "whole", PLAN, **SAVING).run()
    context = multiprocessing.get_context("fork")
    for training in range(3):  # the first network, then the second and the third of what is left
        process = context.Process(target=_run_and_die, args=(tmp_path / "killed", training + 1))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    make_experiment(tmp_path / "killed", PLAN, **SAVING).run()
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    for network in lines(tmp_path / "whole"):
        one, two = (make_experiment(tmp_path / name, PLAN).folder(network).trained() for name in ("killed", "whole"))
        assert same(one.tensors, two.tensors)


@pytest.mark.parametrize("file", [TRAINED_FILE, "mask.safetensors"])
def test_a_damaged_round_of_a_chain_is_trained_again_where_the_next_needs_it(tmp_path, file):
    experiment = make_experiment(tmp_path, PLAN)
    experiment.run()
    before, started = lines(tmp_path), []
    name = "learning_rate_rewinding"
    (experiment.folder(Network(0, 2, name)).path / "result.json").unlink()
    damaged = experiment.folder(Network(0, 1, name)).path / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    make_experiment(tmp_path, PLAN).run(on_start=started.append)
    assert started == [Network(0, 2, name), Network(0, 1, name), Network(0, 2, name)]
    assert lines(tmp_path) == before


class Overflow(TrainerCallback):
    """Writes nan into a weight in every training under a mask that is of no ticket."""

    def on_step_end(self, args, state, control, model, **kwargs):
        if "learning_rate_rewinding" in args.output_dir:
            next(model.parameters()).data.view(-1)[0] = float("nan")


def test_a_chain_that_diverges_ends_itself_alone(tmp_path):
    plan, said = [control("learning_rate_rewinding"), control("no_rewinding")], []
    experiment = make_experiment(tmp_path, plan, rounds=3, callbacks=[Overflow()])
    experiment.run(on_diverged=said.append)
    gone = {Network(0, number, "learning_rate_rewinding") for number in (2, 3)}
    assert set(experiment.left_out()) == gone and experiment.pending() == []
    assert lines(tmp_path).keys() == set(experiment.networks()) - gone
    (sentence,) = said
    assert sentence.startswith("learning_rate_rewinding 1 of replicate 0 diverged at round 1, step")
    assert sentence.endswith(
        "left out: replicate 0 · round 2 · learning rate rewinding; replicate 0 · round 3 · learning rate rewinding"
    )
    assert read_results(tmp_path).missing(experiment.networks()) == []
    trainer = experiment.make_trainer(42, tmp_path / "replicate-0")
    with pytest.raises(DivergedError, match="round 1 diverged"):
        continue_chain(trainer, Network(0, 2, "learning_rate_rewinding"), "learning_rate_rewinding")


def _work(root, started):
    torch.set_num_threads(1)
    plan = [control("no_rewinding", [2], 2), control("learning_rate_rewinding", [2])]
    make_experiment(root, plan).run(on_start=lambda network: started.append(str(network)), poll_seconds=0.05)


def test_two_workers_train_each_network_of_a_chain_once(tmp_path):
    started = by_two_workers(_work, tmp_path / "two")
    assert set(started.values()) == {1} and len(started) == 9
    _work(tmp_path / "one", [])
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


# --- folders of an earlier version


def older(root, name: str, number: int, steps: int = 6) -> None:
    """The control of a round as an earlier version trained it: the ticket's mask over the ticket's weights before."""
    experiment = make_experiment(root, [])
    trainer = experiment.make_trainer(42, root / "replicate-0")
    trainer.args.max_steps = steps
    search = Search(trainer)
    search.enter_round(number)
    search.round_folder(number - 1).trained().restore(trainer.model)
    trainer.mask = search.round_folder(number).mask()
    trainer.restart(retraining=RETRAINING[name])
    network = Network(0, number, name)
    search.train_network(experiment.folder(network), replicate=0, round=number, control=name, sample=0)


def test_a_folder_of_an_earlier_version_is_read_with_a_note_and_misses_nothing(tmp_path):
    make_experiment(tmp_path, []).run()
    older(tmp_path, "no_rewinding", 2)
    results = read_results(tmp_path)
    assert results.rounds("no_rewinding") == [2]
    assert results.missing(make_experiment(tmp_path, [control("no_rewinding", [2])]).networks()) == []
    assert "no_rewinding at round 2 is of an earlier version" in " ".join(results.notes)


def test_round_1_of_an_earlier_version_is_the_chains_own(tmp_path):
    make_experiment(tmp_path, [control("no_rewinding", [1])]).run()
    (before,) = [line for network, line in lines(tmp_path).items() if network.control != "ticket"]
    older(tmp_path, "no_rewinding", 1)
    started = []
    make_experiment(tmp_path, [control("no_rewinding", [1])]).run(on_start=started.append)
    (after,) = [line for network, line in lines(tmp_path).items() if network.control != "ticket"]
    assert started == [] and {**after, "chain": 1} == before
    assert not any("earlier version" in note for note in read_results(tmp_path).notes)


def test_run_again_such_a_folder_gets_the_chain(tmp_path, caplog):
    plan = [control("no_rewinding", [2])]
    make_experiment(tmp_path / "new", plan).run()
    make_experiment(tmp_path / "old", []).run()
    older(tmp_path / "old", "no_rewinding", 2)
    started = []
    make_experiment(tmp_path / "old", plan).run(on_start=started.append)
    assert started == [Network(0, 1, "no_rewinding"), Network(0, 2, "no_rewinding")]
    assert "replicate 0 · round 2 · no rewinding was trained by an earlier version" in caplog.text
    assert lines(tmp_path / "old") == lines(tmp_path / "new")
    assert not any("earlier version" in note for note in read_results(tmp_path / "old").notes)
