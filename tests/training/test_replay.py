"""How a training starts: a replay under other random numbers, a parent that is busy in __init__, a plain trainer."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers import Trainer

from hf_lottery import LotteryConfig, LotteryMixin, Mask
from hf_lottery.experiment.controls import CONTROLS
from hf_lottery.experiment.instability import measure_instability
from hf_lottery.layout import CHAINS
from hf_lottery.training.mask_schedule import DYNAMIC
from hf_lottery.training.search import Search
from tests.experiment import test_instability as blobs
from tests.tiny import Net, curve, make_trainer, same, weights


def run(trainer):
    trainer.train()
    return curve(trainer), weights(trainer.model)


# --- other random numbers


@pytest.mark.parametrize("k", [0, 4])
def test_a_replay_under_a_seed_has_other_data_and_leaves_the_first_training_replayable(tmp_path, k):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(rewind_step=k), data_seed=5)
    first = run(trainer)
    seen = {}
    for seed in (1, 2, 1):
        trainer.rewind()
        trainer.restart(seed=seed)
        losses, final = run(trainer)
        assert losses[:k] == first[0][:k] and all(a[1] != b[1] for a, b in zip(losses[k:], first[0][k:], strict=True))
        if seed in seen:
            assert losses == seen[seed][0] and same(final, seen[seed][1])
        seen[seed] = losses, final
    assert seen[1][0] != seen[2][0]
    trainer.rewind()
    again = run(trainer)
    assert again[0] == first[0] and same(again[1], first[1])
    assert trainer.accelerator.dataloader_config.data_seed == 5


def test_a_replay_under_a_seed_that_broke_off_leaves_data_seed_alone(tmp_path):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(), data_seed=5)
    first = run(trainer)
    step = trainer.training_step

    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    trainer.rewind()
    trainer.restart(seed=1)
    trainer.training_step = broken
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.accelerator.dataloader_config.data_seed == 5
    trainer.training_step = step
    trainer.rewind()
    again = run(trainer)
    assert again[0] == first[0] and same(again[1], first[1])


# --- the caller's config


@pytest.mark.parametrize("pattern", ["weight", "neuron"])
def test_no_control_changes_the_config(tmp_path, pattern):
    config = LotteryConfig(num_rounds=2, pruning_rate=0.4, pattern=pattern)
    before = copy.deepcopy(config)
    finder = make_trainer(tmp_path, lottery_config=config, lr_scheduler_type="constant")
    finder.find_ticket()
    for name, control in CONTROLS.items():
        if name in DYNAMIC and pattern != "weight":
            continue  # they exchange single weights, and refuse
        trainer = make_trainer(tmp_path, lottery_config=config, lr_scheduler_type="constant", model_init=Net)
        search, number = Search(trainer), 1 if name in CHAINS else 2  # a chain's round 2 needs its own round 1
        search.enter_round(number)
        control(trainer, number, 7)
        search.train_network(search.round_folder(9), control=name, round=number)
        assert trainer.lottery_config is config and config == before
    with pytest.raises(FrozenInstanceError):
        config.retraining = "fine_tuning"


def test_instability_starts_from_the_rewind_point_whatever_the_config_says_and_does_not_change_it(tmp_path):
    found = []
    for retraining in ("weight_rewinding", "fine_tuning"):
        trainer = blobs.make_trainer(tmp_path / retraining, lr_scheduler_type="constant")
        trainer.lottery_config = config = LotteryConfig(rewind_step=3, retraining=retraining)
        measured = measure_instability(trainer, tmp_path / retraining / "paths", seeds=[1, 2], points=3)
        assert trainer.lottery_config is config and config.retraining == retraining
        found.append(measured.paths)
    assert found[0] == found[1]


@pytest.mark.parametrize("retraining", ["weight_rewinding", "fine_tuning"])
@pytest.mark.parametrize("control", ["no_rewinding", "learning_rate_rewinding"])
def test_controls_that_do_not_rewind_weights_have_their_own_learning_rates(tmp_path, control, retraining):
    settings = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.25}}
    config = LotteryConfig(num_rounds=1, retraining=retraining)
    make_trainer(tmp_path, lottery_config=config, **settings).find_ticket()
    trainer = make_trainer(tmp_path, lottery_config=config, **settings)
    search = Search(trainer)
    search.enter_round(1)
    CONTROLS[control](trainer, 1, 7)
    search.train_network(search.round_folder(9), control=control, round=1)
    rates = [r["learning_rate"] for r in trainer.state.log_history if "learning_rate" in r]
    if control == "no_rewinding":
        assert set(rates) == {0.0025}
    else:
        assert rates[0] == 0.01 and rates == sorted(set(rates), reverse=True)


# --- a parent that is busy in __init__, and a trainer without our arguments


class Busy(Trainer):
    """Logs, makes its optimizer and saves before LotteryMixin has set anything up."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.log({"made": 1.0})
        self.create_optimizer()
        self.save_model()


class BusyLottery(LotteryMixin, Busy):
    pass


def test_a_parent_that_logs_saves_and_makes_its_optimizer_in_init(tmp_path):
    plain = run(make_trainer(tmp_path / "plain", cls=Busy))
    without = run(make_trainer(tmp_path / "without", cls=BusyLottery))
    trainer = make_trainer(tmp_path / "with", cls=BusyLottery, lottery_config=LotteryConfig(pruning_rate=0.5))
    first = run(trainer)
    assert plain[0] == without[0] == first[0] and same(plain[1], without[1]) and same(plain[1], first[1])
    trainer.rewind()
    again = run(trainer)
    assert again[0] == first[0] and same(again[1], first[1])
    mask = trainer.prune()
    trainer.rewind()
    trainer.train()
    assert all(not trainer.model.get_parameter(name)[~kept].any() for name, kept in mask.items())


STEPS = {
    "mask": lambda trainer: trainer.mask,
    "setting the mask": lambda trainer: setattr(trainer, "mask", Mask({"w": torch.ones(1, dtype=torch.bool)})),
    "prune": lambda trainer: trainer.prune(),
    "rewind": lambda trainer: trainer.rewind(),
    "restart": lambda trainer: trainer.restart(),
    "rewind_point": lambda trainer: trainer.rewind_point,
    "load_rewind_point": lambda trainer: trainer.load_rewind_point(),
    "prunable_weights": lambda trainer: trainer.prunable_weights(),
    "find_ticket": lambda trainer: trainer.find_ticket(),
    "ticket": lambda trainer: trainer.ticket(),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_without_lottery_config_or_ticket_every_step_says_so(tmp_path, step):
    trainer = make_trainer(tmp_path)
    with pytest.raises(RuntimeError, match="has no mask: pass lottery_config or ticket to the trainer"):
        step(trainer)
    trainer.train()  # it is still a Trainer


def test_a_restart_before_the_rewind_point_is_known_says_so(tmp_path):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig())
    with pytest.raises(RuntimeError, match="train to the rewind step first"):
        trainer.restart()
    trainer.train()  # as it says
