"""rewind_optimizer: state and fresh. What the optimizer has at step k, and what a plain loop of torch makes of it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from hf_lottery import LotteryConfig
from hf_lottery.experiment.controls import CONTROLS
from hf_lottery.training.masked_step import inner_optimizer
from hf_lottery.training.search import Search
from tests import tiny_lm
from tests.tiny import Net, curve, make_trainer, same, weights

K = 4


class AtStep(TrainerCallback):
    """Keeps the optimizer's state at the beginning of a step of each training, and all learning rates."""

    def __init__(self, step: int = K):
        self.step, self.found, self.rates = step, [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.rates.append([])

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        self.rates[-1].append([group["lr"] for group in inner_optimizer(optimizer).param_groups])
        if state.global_step == self.step:
            self.found.append(copy.deepcopy(inner_optimizer(optimizer).state_dict()))


def searched(folder, kind, k=K, look=None, **settings):
    config = LotteryConfig(num_rounds=1, pruning_rate=0.4, rewind_step=k, rewind_optimizer=kind)
    trainer = make_trainer(folder, lottery_config=config, callbacks=[look] if look else [], **settings)
    trainer.find_ticket()
    return trainer


def held(state) -> bool:
    """Whether a state_dict holds a number other than 0."""
    return any(torch.is_tensor(v) and bool(v.any()) for entry in state["state"].values() for v in entry.values())


def without_rates(groups) -> list[dict]:
    return [{key: value for key, value in group.items() if key not in ("lr", "scheduled_lr")} for group in groups]


OPTIMS = ("adamw_torch", "sgd", "adagrad", "rmsprop", "adafactor", "adamw_bnb_8bit", "schedule_free_adamw")


@pytest.mark.parametrize("optim", OPTIMS)
def test_a_fresh_optimizer_is_that_of_a_new_trainer_at_the_learning_rate_of_step_k(tmp_path, optim):
    schedule = "constant" if optim.startswith("schedule_free") else "linear"
    settings = {"optim": optim, "lr_scheduler_type": schedule}
    settings |= {"optim_args": "momentum=0.9"} if optim in ("sgd", "rmsprop") else {}
    look, new = AtStep(), AtStep(0)
    searched(tmp_path / "a", "fresh", look=look, **settings)
    make_trainer(tmp_path / "b", callbacks=[new], **settings).train()
    first, later = look.found
    assert not held(later) and str(later["state"]) == str(new.found[0]["state"])
    assert without_rates(later["param_groups"]) == without_rates(new.found[0]["param_groups"])
    assert [group["lr"] for group in later["param_groups"]] == [group["lr"] for group in first["param_groups"]]
    assert look.rates[1] == look.rates[0][K:]


@pytest.mark.parametrize(
    "schedule", ["linear", "cosine_with_restarts", "constant_with_warmup", "reduce_lr_on_plateau"]
)
def test_the_learning_rates_go_on_from_step_k(tmp_path, schedule):
    look = AtStep()
    settings = {"lr_scheduler_type": schedule, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"warmup_steps": 6} if "warmup" in schedule else {}
    settings |= {"metric_for_best_model": "validation_loss", "greater_is_better": False}
    settings |= {"lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0}} if "plateau" in schedule else {}
    searched(tmp_path, "fresh", look=look, **settings)
    assert len(look.rates[1]) == 10 - K and look.rates[1] == look.rates[0][K:]
    assert len({tuple(rates) for rates in look.rates[0]}) > 1


def test_the_default_has_the_state_of_step_k(tmp_path):
    look = AtStep()
    searched(tmp_path, "state", look=look)
    first, later = look.found
    assert held(later) and later["param_groups"] == first["param_groups"]


class Plain(Net):
    """Without dropout; keeps its batches."""

    def __init__(self):
        super().__init__()
        self.dropout.p = 0.0
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x, labels=None):
        if self.training:
            self.batches.append((x.clone(), labels.clone()))
        return super().forward(x, labels)


@pytest.mark.parametrize("optim, cls", [("adamw_torch", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_a_round_is_what_a_new_torch_optimizer_makes_of_the_rewound_network(tmp_path, optim, cls):
    torch.manual_seed(7)
    config = LotteryConfig(num_rounds=1, pruning_rate=0.4, rewind_step=K, rewind_optimizer="fresh")
    settings = {"optim": optim, "max_grad_norm": 0, "lr_scheduler_type": "linear"}
    trainer = make_trainer(tmp_path, Plain(), lottery_config=config, **settings)
    search = Search(trainer)
    search.run_round(0)
    trainer.model.batches.clear()
    search.run_round(1)

    model, mask = Plain(), trainer.mask
    trainer.rewind_point.restore(model)
    kept = [(dict(model.named_parameters())[name], mask[name]) for name in mask]
    optimizer = cls(model.parameters(), lr=0.01, weight_decay=0.0)
    assert len(trainer.model.batches) == 10 - K
    for step, (x, labels) in enumerate(list(trainer.model.batches), start=K):
        with torch.no_grad():
            for parameter, m in kept:
                parameter.mul_(m)
        optimizer.param_groups[0]["lr"] = 0.01 * (10 - step) / 10
        optimizer.zero_grad()
        model(x, labels)["loss"].backward()
        for parameter, m in kept:
            parameter.grad.mul_(m)
        optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, trainer.model.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_at_step_0_both_are_the_same(tmp_path):
    one, two = (searched(tmp_path / kind, kind, k=0) for kind in ("state", "fresh"))
    assert same(weights(one.model), weights(two.model)) and curve(one) == curve(two)


def test_they_differ_at_step_k_and_round_0_does_not(tmp_path):
    one, two = (searched(tmp_path / kind, kind) for kind in ("state", "fresh"))
    dense = [Search(trainer).round_folder(0).trained().tensors for trainer in (one, two)]
    assert same(*dense) and not same(weights(one.model), weights(two.model))


@pytest.mark.parametrize("own", [False, True], ids=["Trainer's", "passed in"])
def test_every_rewind_starts_afresh_in_one_process_as_in_several(tmp_path, own):
    def trainer(name):
        torch.manual_seed(7)
        model = Net()
        settings = {"lottery_config": LotteryConfig(rewind_step=K, rewind_optimizer="fresh"), "model": model}
        if own:
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            settings["optimizers"] = (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5))
        return make_trainer(tmp_path / name, **settings)

    one = trainer("a")
    one.train()
    found = []
    for _ in range(2):
        one.rewind()
        one.train()
        found.append(weights(one.model))
    other = trainer("a")
    other.load_rewind_point()
    other.rewind()
    other.train()
    assert same(*found) and same(found[0], weights(other.model))


@pytest.mark.parametrize("control", ["random_mask", "learning_rate_rewinding", "no_rewinding", "one_shot"])
def test_controls_that_start_at_step_k_have_a_fresh_optimizer_too(tmp_path, control):
    searched(tmp_path, "fresh", lr_scheduler_type="constant")
    look = AtStep()
    config = LotteryConfig(num_rounds=1, pruning_rate=0.4, rewind_step=K, rewind_optimizer="fresh")
    trainer = make_trainer(tmp_path, lottery_config=config, callbacks=[look], lr_scheduler_type="constant")
    search = Search(trainer)
    search.enter_round(1)
    CONTROLS[control](trainer, 1, 7)
    search.train_network(search.round_folder(9), control=control, round=1)
    assert len(look.found) == 1 and not held(look.found[0])


class BreakOff(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if "round-01" in args.output_dir and state.global_step == self.step:
            raise KeyboardInterrupt


def lora(folder, callbacks=()):
    model = tiny_lm.model(seed=5)
    torch.manual_seed(6)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    tokens = torch.randint(0, 256, (48, 10), generator=torch.Generator().manual_seed(3))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    config = LotteryConfig(num_rounds=1, pruning_rate=0.3, rewind_step=2, rewind_optimizer="fresh", data_order="fresh")
    settings = {"max_steps": 7, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
    return make_trainer(folder, model, train=rows, lottery_config=config, callbacks=callbacks, **settings)


@pytest.mark.parametrize("step", [3, 5])
def test_a_lora_that_was_broken_off_goes_on_bit_for_bit(tmp_path, step):
    expected, again = lora(tmp_path / "a"), lora(tmp_path / "b")
    expected.eval_dataset = again.eval_dataset = None
    expected.find_ticket()
    broken = lora(tmp_path / "b", [BreakOff(step)])
    broken.eval_dataset = None
    with pytest.raises(KeyboardInterrupt):
        broken.find_ticket()
    again.find_ticket()
    assert same(weights(again.model), weights(expected.model))
