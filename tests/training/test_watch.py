"""The watch: a pruned weight that moves, a mask that changes, nan and inf are seen; and it changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_lottery import LotteryConfig
from hf_lottery.training.masked_step import inner_optimizer
from hf_lottery.training.watch import BrokenMaskError, Watch
from tests.tiny import Net, curve, examples, make_trainer, same, seeded_net, weights


def pruned_trainer(folder, callbacks=(), pruned_value="zero", **settings):
    """A trainer at 60% density whose next training is that of round 1."""
    config = LotteryConfig(num_rounds=1, pruning_rate=0.4, pruned_value=pruned_value)
    trainer = make_trainer(folder, callbacks=callbacks, lottery_config=config, **settings)
    trainer.train()
    trainer.prune()
    trainer.rewind()
    return trainer


def first_pruned(trainer, name="classifier.weight") -> tuple[int, int]:
    return tuple((~trainer.mask[name]).nonzero()[0].tolist())


class Hostile(TrainerCallback):
    """Writes into the first pruned weight of the output layer after one step, or by a hook after every step."""

    def __init__(self, step: int | None, value: float = 0.25):
        self.step, self.value, self.trainer = step, value, None

    def write(self, *_):
        with torch.no_grad():
            self.trainer.model.classifier.weight[first_pruned(self.trainer)] = self.value

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer is not None and self.step is None and state.global_step == 0:
            inner_optimizer(self.trainer.optimizer).register_step_post_hook(self.write)  # after the masked step's own

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer is not None and state.global_step == self.step:
            self.write()


# step 1 and 10 are the first and the last; at step 5 there is a log; a hook is seen at the first step
@pytest.mark.parametrize("step, seen", [(1, 1), (5, 5), (10, 10), (None, 1)])
def test_a_pruned_weight_that_moves_is_named_with_its_index_and_values(tmp_path, step, seen):
    hostile = Hostile(step)
    trainer = pruned_trainer(tmp_path, [hostile], logging_steps=5)
    hostile.trainer = trainer
    row, column = first_pruned(trainer)
    with pytest.raises(BrokenMaskError) as error:
        trainer.train()
    assert (
        f"after step {seen} the pruned weight [{row}, {column}] of 'classifier.weight' is 0.25 and must be 0"
        in str(error.value)
    )


def test_a_weight_that_is_held_at_its_rewind_value_is_compared_with_that(tmp_path):
    hostile = Hostile(10, 0.0)
    trainer = pruned_trainer(tmp_path, [hostile], pruned_value="init")
    theta = float(trainer.rewind_point.tensors["classifier.weight"][first_pruned(trainer)])
    trainer.train()
    trainer.rewind()
    hostile.trainer = trainer
    with pytest.raises(BrokenMaskError, match=rf"'classifier\.weight' is 0 and must be {theta:g} "):
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pruned_value", ["zero", "init"])
def test_half_precision_is_compared_in_its_own_values(tmp_path, dtype, pruned_value):
    trainer = pruned_trainer(tmp_path, model=seeded_net().to(dtype), pruned_value=pruned_value, train=halves(dtype))
    trainer.train()
    assert trainer.watch.diverged is None


def halves(dtype):
    return [{"x": row["x"].to(dtype), "labels": row["labels"]} for row in examples()]


def test_a_mask_that_is_written_into_is_named(tmp_path):
    trainer = pruned_trainer(tmp_path)
    kept = int(trainer.mask["first.weight"].count_nonzero())
    place = tuple(trainer.mask["first.weight"].nonzero()[0].tolist())
    trainer.mask["first.weight"][place] = False
    with pytest.raises(BrokenMaskError, match=rf"'first\.weight' keeps {kept - 1} of 288 weights, and it kept {kept}"):
        trainer.train()


def test_a_mask_that_is_set_in_the_middle_is_no_breach(tmp_path):
    class Prune(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                trainer.prune()

    trainer = pruned_trainer(tmp_path)
    trainer.add_callback(Prune())
    trainer.train()
    assert trainer.mask.density() == pytest.approx(0.6 * 0.6, abs=0.01)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"lr_scheduler_type": "cosine"}])
def test_a_watched_training_has_the_bits_and_random_numbers_of_one_that_is_not(tmp_path, settings):
    watched = pruned_trainer(tmp_path / "watched", **settings)
    plain = pruned_trainer(tmp_path / "plain", **settings)
    plain.remove_callback(Watch)
    plain.watch = None
    states = []
    for trainer in (watched, plain):
        trainer.train()
        states.append(torch.get_rng_state())
    assert curve(watched) == curve(plain) and same(weights(watched.model), weights(plain.model))
    assert torch.equal(*states)


# --- nan and inf


class Break(TrainerCallback):
    """Writes a value into one weight after a step."""

    def __init__(self, step: int, value: float, name: str = "classifier.bias"):
        self.step, self.value, self.name = step, value, name

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            dict(model.state_dict(keep_vars=True))[self.name].data.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["first.weight", "norm.running_mean"])
def test_training_on_ones_own_goes_on_and_says_what_was_seen(tmp_path, caplog, value, name):
    trainer = make_trainer(
        tmp_path, callbacks=[Break(4, value, name)], lottery_config=LotteryConfig(), logging_steps=2
    )
    with caplog.at_level(logging.WARNING, "hf_lottery"):
        trainer.train()
    assert trainer.state.global_step == 10
    assert (trainer.watch.diverged.step, trainer.watch.diverged.tensor) == (4, name)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("hf_lottery")] == [
        f"training has diverged at step 4 (weights of '{name}'): nan or infinite; it goes on"
    ]


def test_a_model_that_holds_infinity_on_purpose_is_left_in_peace(tmp_path):
    model = seeded_net()
    model.register_buffer("causal", torch.full((2, 2), -float("inf")))
    trainer = make_trainer(tmp_path, model=model, lottery_config=LotteryConfig())
    trainer.train()
    assert trainer.watch.diverged is None


class NanLoss(Net):
    """Its loss is nan from one batch on, its gradients stay finite."""

    after = 9

    def forward(self, x, labels=None):
        out = super().forward(x, labels)
        self.after -= self.training
        return out if self.after >= 0 else {**out, "loss": out["loss"] + torch.tensor(float("nan"))}


def test_a_loss_of_nan_at_the_last_step_is_seen_with_finite_weights(tmp_path):
    trainer = make_trainer(tmp_path, model=NanLoss(), lottery_config=LotteryConfig(), logging_steps=3)
    trainer.train()
    assert (trainer.watch.diverged.step, trainer.watch.diverged.tensor) == (10, None)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_steps_that_the_gradient_scaler_skips_are_no_divergence(tmp_path):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig())
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
    trainer.train()
    norms = [record["grad_norm"] for record in trainer.state.log_history if "grad_norm" in record]
    assert not all(map(torch.isfinite, map(torch.tensor, norms)))  # steps were skipped
    assert trainer.watch.diverged is None and trainer.state.global_step == 10


def test_without_a_lottery_there_is_no_watch(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    assert trainer.watch is None
    assert not any(isinstance(callback, Watch) for callback in trainer.callback_handler.callbacks)
