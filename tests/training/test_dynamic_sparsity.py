"""Dynamic sparsity against an oracle: RigL and SET again as a plain loop, with an Adam that counts every weight."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from hf_lottery import LotteryConfig, Mask
from hf_lottery.training.dynamic_sparsity import DynamicSparsity
from hf_lottery.training.mask_schedule import MaskSchedule
from tests.tiny import examples, make_trainer, same, weights

STEPS = 80  # the mask changes at every fourth step up to 56
SETTINGS = {
    "adamw, fused": {},
    "adamw with decay, clipped": {"optim": "adamw_torch", "weight_decay": 0.1, "max_grad_norm": 0.1},
    "amsgrad": {"amsgrad": True, "max_grad_norm": 0},
    "accumulation": {"optim": "adamw_torch", "gradient_accumulation_steps": 2},
    "sgd with momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.01, "learning_rate": 0.1},
}


class Plain(nn.Module):
    """Two linear layers, without anything random. Keeps the batches that it was trained on."""

    def __init__(self):
        super().__init__()
        self.first, self.classifier = nn.Linear(12, 24), nn.Linear(24, 3)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x, labels=None):
        if self.training:
            self.seen.append((x, labels))
        logits = self.classifier(torch.relu(self.first(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class EveryStep(TrainerCallback):
    """Keeps weights, masks and learning rates after every step; can break training off."""

    def __init__(self, stop_at: int | None = None):
        self.trainer, self.stop_at = None, stop_at
        self.weights, self.masks, self.rates = [], [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append(weights(model))
        self.masks.append({name: kept.clone() for name, kept in self.trainer.mask.items()})
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt


def dynamic(folder, rule, stop_at=None, model=None, seed=3, **settings):
    """A trainer under a random mask, which changes in its training; and what watches it."""
    torch.manual_seed(7)
    watch = EveryStep(stop_at)
    settings = {"max_steps": STEPS, "lr_scheduler_type": "linear", **settings}
    model = Plain() if model is None else model
    if settings.pop("amsgrad", False):  # which is none of TrainingArguments
        settings["optimizers"] = (torch.optim.Adam(model.parameters(), 0.01, amsgrad=True), None)
    trainer = make_trainer(folder, model=model, lottery_config=LotteryConfig(), callbacks=[watch], **settings)
    watch.trainer = trainer
    generator = torch.Generator().manual_seed(5)
    trainer.mask = Mask(
        {name: torch.rand(kept.shape, generator=generator) < 0.4 for name, kept in trainer.mask.items()}
    )
    DynamicSparsity(trainer, rule, seed)
    return trainer, watch


class Adam:
    """AdamW for one tensor, in which every weight has its own count of steps."""

    def __init__(self, like, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0, amsgrad=False):
        self.beta1, self.beta2, self.eps, self.decay, self.amsgrad = beta1, beta2, eps, decay, amsgrad
        self.first, self.second, self.most, self.steps = (torch.zeros_like(like, dtype=torch.double) for _ in range(4))

    def step(self, weight, gradient, rate):
        gradient = gradient.double()
        self.steps += 1
        self.first = self.beta1 * self.first + (1 - self.beta1) * gradient
        self.second = self.beta2 * self.second + (1 - self.beta2) * gradient**2
        self.most = torch.maximum(self.most, self.second)
        first = self.first / (1 - self.beta1**self.steps)
        second = (self.most if self.amsgrad else self.second) / (1 - self.beta2**self.steps)
        return weight * (1 - rate * self.decay) - rate * first / (second.sqrt() + self.eps)

    def forget(self, where):
        for tensor in (self.first, self.second, self.most, self.steps):
            tensor[where] = 0


class Momentum:
    def __init__(self, like, decay):
        self.buffer, self.decay = torch.zeros_like(like, dtype=torch.double), decay

    def step(self, weight, gradient, rate):
        self.buffer = 0.9 * self.buffer + gradient + self.decay * weight
        return weight - rate * self.buffer

    def forget(self, where):
        self.buffer[where] = 0


def oracle(trainer, watch, start, mask, rule, settings):
    """The same training as a loop over the same batches; yields weights and masks after each step."""
    model = Plain()
    model.load_state_dict(start)
    model.eval()  # so that it keeps no batches
    parameters = dict(model.named_parameters())
    decays = {name: settings.get("weight_decay", 0.0) * (not name.endswith("bias")) for name in parameters}
    if settings.get("optim") == "sgd":
        rules = {name: Momentum(p, decays[name]) for name, p in parameters.items()}
    else:
        amsgrad = settings.get("amsgrad", False)
        rules = {name: Adam(p, decay=decays[name], amsgrad=amsgrad) for name, p in parameters.items()}
    batches, accumulated = iter(trainer.model.seen), settings.get("gradient_accumulation_steps", 1)
    end = 0.75 * STEPS
    for step in range(1, STEPS + 1):
        model.zero_grad()
        for _ in range(accumulated):
            x, labels = next(batches)
            (model(x, labels)["loss"] / accumulated).backward()
        dense = {name: p.grad.clone() for name, p in parameters.items()}
        changes = step % 4 == 0 and step < end
        if not (changes and rule == "rigl"):
            masked = {name: g * mask[name] if name in mask else g for name, g in dense.items()}
            norm = torch.stack([g.norm() for g in masked.values()]).norm()
            most = settings.get("max_grad_norm", 1.0)
            factor = min(1.0, most / (norm.item() + 1e-6)) if most else 1.0
            for name, p in parameters.items():
                new = rules[name].step(p.data.double(), masked[name] * factor, watch.rates[step - 1])
                p.data = (new * mask[name] if name in mask else new).float()
        if changes:
            share = 0.3 / 2 * (1 + math.cos(step * math.pi / end))
            for name, kept in mask.items():
                new = (
                    watch.masks[step - 1][name] if rule == "set" else rigl(parameters[name], dense[name], kept, share)
                )
                parameters[name].data[~new] = 0
                rules[name].forget(~(kept & new))
                mask = {**mask, name: new}
        yield {name: p.detach().clone() for name, p in parameters.items()}, mask


def rigl(weight, gradient, kept, share):
    """Algorithm 1 of Evci et al. 2020, by sorting all weights of the tensor."""
    count = int(share * int(kept.sum()))
    magnitude = weight.detach().abs().masked_fill(~kept, math.inf).flatten()
    new = kept.clone()
    new.view(-1)[magnitude.argsort(stable=True)[:count]] = False
    slope = gradient.abs().masked_fill(new, -1).flatten()
    new.view(-1)[slope.argsort(stable=True)[new.numel() - count :]] = True
    return new


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_masks_and_weights_are_those_of_a_plain_loop(tmp_path, rule, settings):
    trainer, watch = dynamic(tmp_path, rule, **settings)
    start, mask = weights(trainer.model), dict(trainer.mask)
    counts = trainer.mask.counts()
    trainer.train()
    for step, (expected, masks) in enumerate(oracle(trainer, watch, start, mask, rule, settings), start=1):
        assert same(watch.masks[step - 1], masks), f"step {step}"
        assert Mask(watch.masks[step - 1]).counts() == counts
        for name, value in watch.weights[step - 1].items():
            assert torch.allclose(value, expected[name], rtol=1e-4, atol=2e-6), f"{name} after step {step}"
            assert name not in masks or not value[~masks[name]].any()
    changed = sum(not same(a, b) for a, b in zip(watch.masks, watch.masks[1:], strict=False))
    assert changed >= 12 and same(dict(trainer.mask), watch.masks[-1])


@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_what_is_dropped_has_the_smallest_magnitude_and_what_comes_in_starts_at_zero(tmp_path, rule):
    trainer, watch = dynamic(tmp_path, rule)
    trainer.train()
    for step in range(2, STEPS):
        for name, after in watch.masks[step].items():
            before = watch.masks[step - 1][name]
            came, value = after & ~before, watch.weights[step][name]
            assert not value[came].any()
            if (before & ~after).any() and rule == "rigl":  # which makes no step there
                magnitude = watch.weights[step - 1][name].abs()
                count = int(MaskSchedule(STEPS).share(step + 1) * int(before.sum()))
                assert magnitude[before & ~after].max() <= magnitude[before].sort().values[count - 1]


def test_the_first_steps_of_a_regrown_weight_are_at_most_a_learning_rate(tmp_path):
    trainer, watch = dynamic(tmp_path, "rigl", lr_scheduler_type="constant", max_steps=200, learning_rate=1e-3)
    trainer.train()
    first = [
        watch.weights[step + 1][name][after & ~watch.masks[step - 1][name] & watch.masks[step + 1][name]].abs()
        for step in range(1, 198)
        for name, after in watch.masks[step].items()
    ]
    first = torch.cat(first)
    assert len(first) > 100
    assert first.median() > 0.9e-3 and first.max() <= 1.0001e-3  # torch's own count would make it 3e-3


def test_set_draws_other_places_under_another_seed(tmp_path):
    masks = []
    for number, seed in enumerate([3, 3, 4]):
        trainer, _ = dynamic(tmp_path / str(number), "set", seed=seed)
        trainer.train()
        masks.append(trainer.mask)
    assert masks[0] == masks[1] != masks[2]


@pytest.mark.parametrize("rule", ["rigl", "set"])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("stop_at", [11, 21, 34])
def test_a_training_that_was_broken_off_ends_with_the_same_bits(tmp_path, rule, optim, stop_at):
    saved = {"save_strategy": "steps", "save_steps": 5, "optim": optim}
    expected, _ = dynamic(tmp_path / "a", rule, **saved)
    expected.train()
    with pytest.raises(KeyboardInterrupt):
        dynamic(tmp_path / "b", rule, stop_at, **saved)[0].train()
    found, watch = dynamic(tmp_path / "b", rule, **saved)
    found.train(resume_from_checkpoint=True)
    assert len(watch.masks) == STEPS - stop_at // 5 * 5
    assert found.mask == expected.mask
    assert same(weights(found.model), weights(expected.model))


def test_the_best_weights_come_back_with_the_mask_that_they_had(tmp_path):
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps"}
    # the highest loss, so that it is an early checkpoint
    best |= {"eval_steps": 5, "metric_for_best_model": "eval_validation_loss", "greater_is_better": True}
    trainer, watch = dynamic(tmp_path, "rigl", **best)
    trainer.train()
    step = trainer.state.best_global_step
    assert step < 56
    assert same(dict(trainer.mask), watch.masks[step - 1]) and not same(dict(trainer.mask), watch.masks[-1])
    for name in trainer.mask:
        assert torch.equal(trainer.model.get_parameter(name), watch.weights[step - 1][name])


def test_a_training_that_diverges_is_said_to_and_not_an_error(tmp_path):
    data = [{**row, "x": row["x"] * math.inf} for row in examples()]
    trainer, _ = dynamic(tmp_path, "rigl", train=data)
    with trainer.watch.stopping():
        trainer.train()
    assert trainer.watch.diverged is not None


@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_of_an_adapter_and_in_bf16(tmp_path, rule):
    torch.manual_seed(0)
    model = get_peft_model(Plain(), LoraConfig(r=4, target_modules=["first"]))
    settings = {"bf16": True, "remove_unused_columns": False, "label_names": ["labels"]}
    trainer, watch = dynamic(tmp_path, rule, model=model, **settings)
    first, counts = trainer.mask, trainer.mask.counts()
    trainer.train()
    assert len(first) == 2 and all(".lora_" in name for name in first)
    assert trainer.mask.counts() == counts
    for name, kept in trainer.mask.items():
        assert not torch.equal(kept, first[name])
        assert all(not value[name][~mask[name]].any() for value, mask in zip(watch.weights, watch.masks, strict=True))


@pytest.mark.parametrize(
    ("steps", "interval", "last"), [(3, 2, 2), (40, 2, 28), (600, 30, 420), (2000, 100, 1400), (32000, 100, 23900)]
)
def test_the_schedule(steps, interval, last):
    schedule = MaskSchedule(steps)
    changes = [step for step in range(1, steps + 1) if schedule.changes_at(step)]
    assert (schedule.interval, changes[0], changes[-1]) == (interval, interval, last)
    shares = [schedule.share(step) for step in changes]
    assert shares[0] < 0.3 and shares == sorted(shares, reverse=True) and shares[-1] > 0


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ({"pattern": "2:4"}, {}, "pattern is 2:4"),
        ({"pattern": "neuron"}, {}, "pattern is neuron"),
        ({"pruned_value": "init"}, {}, "pruned_value is init"),
        ({}, {"optim": "adafactor"}, "optim is adafactor"),
        ({}, {"max_steps": 2}, "max_steps is 2"),
    ],
)
def test_what_does_not_work_is_refused_in_a_sentence(tmp_path, config, settings, said):
    trainer = make_trainer(tmp_path, model=Plain(), lottery_config=LotteryConfig(**config), **settings)
    with pytest.raises(ValueError, match=f"^{said}, and the control rigl .* or leave out this control$"):
        DynamicSparsity(trainer, "rigl", 0)


def test_an_optimizer_of_ones_own_is_refused_if_its_steps_are_not_known(tmp_path):
    model = Plain()
    optimizers = (torch.optim.NAdam(model.parameters()), None)
    trainer = make_trainer(tmp_path, model=model, lottery_config=LotteryConfig(), optimizers=optimizers)
    with pytest.raises(ValueError, match="optim is NAdam"):
        DynamicSparsity(trainer, "set", 0)


def test_epochs_too_few_to_change_the_mask_are_refused(tmp_path):
    trainer, _ = dynamic(tmp_path, "set", max_steps=-1, num_train_epochs=1, gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="training has 2 steps, and the control set needs 3"):
        trainer.train()
