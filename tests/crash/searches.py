"""The searches that are killed through Python's interface: tiny networks, `find_ticket()`, a ticket that is saved."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model

from hf_lottery import LotteryConfig
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.learning_rates import LearningRates
from tests import launched, tiny_lm
from tests.crash.processes import fork, wait
from tests.tiny import Net, make_trainer, seeded_net

STEPS = {
    "max_steps": 7,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 1,
    "lr_scheduler_type": "linear",
}
BEST = {
    "eval_steps": 2,
    "save_steps": 2,
    "max_steps": 8,
    "load_best_model_at_end": True,
    "metric_for_best_model": "validation_loss",
    "greater_is_better": False,
    "save_total_limit": 1,
}


def found(folder: Path, config: dict | None = None, model=None, **settings) -> None:
    """Find a ticket of two rounds and save it."""
    config = {"num_rounds": 2, "pruning_rate": 0.3, **(config or {})}
    model = seeded_net() if model is None else model
    trainer = make_trainer(folder, model=model, lottery_config=LotteryConfig(**config), **{**STEPS, **settings})
    trainer.find_ticket().save_pretrained(folder / "ticket")


def from_initial(folder: Path) -> None:
    found(folder)


def from_step_k(folder: Path) -> None:
    found(folder, {"rewind_step": 2}, logging_steps=2)


def fresh_rounds(folder: Path) -> None:
    """Rounds with a data order and an optimizer of their own, over more than one pass."""
    config = {"rewind_step": 2, "data_order": "fresh", "rewind_optimizer": "fresh"}
    found(folder, config, per_device_train_batch_size=12, gradient_accumulation_steps=2, data_seed=5, save_steps=2)


def accumulating(folder: Path) -> None:
    found(folder, {"rewind_step": 1}, per_device_train_batch_size=4, gradient_accumulation_steps=4, logging_steps=2)


def best_at_end(folder: Path) -> None:
    found(folder, {"rewind_step": 3}, **BEST)


def every_epoch(folder: Path) -> None:
    """Six batches a pass, with a checkpoint and an evaluation at the end of each."""
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}
    found(folder, {"rewind_step": 0.25}, logging_steps=4, **settings)


def learning_rate_rewinding(folder: Path) -> None:
    found(folder, {"rewind_step": 2, "retraining": "learning_rate_rewinding"}, optim="sgd", save_total_limit=2)


def fine_tuning(folder: Path) -> None:
    config = {"rewind_step": 2, "retraining": "fine_tuning"}
    found(folder, config, lr_scheduler_type="constant_with_warmup", warmup_steps=4)


def pruned_to_init(folder: Path) -> None:
    found(folder, {"pruned_value": "init", "rewind_step": 1, "scope": "global"})


def criterion_with_data(folder: Path) -> None:
    found(folder, {"criterion": "snip", "rewind_step": 1})


def lora(folder: Path) -> None:
    """A LoRA of a tiny Llama, on random tokens."""
    model = tiny_lm.model(seed=5)
    torch.manual_seed(6)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    tokens = torch.randint(0, 256, (48, 10), generator=torch.Generator().manual_seed(3))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = make_trainer(
        folder,
        model=model,
        train=rows,
        lottery_config=LotteryConfig(num_rounds=2, pruning_rate=0.3, rewind_step=2),
        **{**STEPS, "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 0.05},
    )
    trainer.eval_dataset = {"validation": rows[:8], "test": rows[8:16]}
    trainer.find_ticket().save_pretrained(folder / "ticket")


def experiment(folder: Path, names, replicates: int = 1, rounds: int = 2, rates=None, **settings) -> Experiment:
    """Replicates and controls, each network with a fresh trainer."""

    def make(seed: int, place: Path, learning_rate: float = 0.01):
        config = LotteryConfig(num_rounds=rounds, pruning_rate=0.4, rewind_step=1 if rates is None else 0)
        asked = {**STEPS, "seed": seed, "learning_rate": learning_rate, **settings}
        return make_trainer(place, model_init=Net, lottery_config=config, **asked)

    controls = [SimpleNamespace(name=name, rounds=[rounds], per_ticket=1) for name in names]
    return Experiment(folder, rounds, replicates, controls, 42, make, rates=rates)


def controls(folder: Path) -> None:
    names = ["random_reinit", "random_mask", "one_shot", "no_rewinding", "learning_rate_rewinding"]
    experiment(folder, names, rounds=1, max_steps=5, lr_scheduler_type="constant").run()


def learning_rates(folder: Path) -> None:
    """The dense network, the ticket and two controls at two learning rates each."""
    rates = LearningRates(0.01, {"random_mask": (0.01, 0.03), "no_rewinding": (0.03,)}, tune=True)
    experiment(folder, list(rates.lists), rounds=1, rates=rates, max_steps=5, lr_scheduler_type="constant").run()


def replicates(folder: Path) -> None:
    experiment(folder, ["random_mask"], replicates=2, rounds=1, logging_steps=2).run()


def two_workers(folder: Path) -> None:
    """Two workers on one folder, and a parent that waits for them. A worker that fails ends the other, as in `run`."""

    def work() -> None:
        experiment(folder, ["random_mask"], replicates=2, rounds=1, max_steps=4, save_steps=2).run(poll_seconds=0.02)

    watch_over([fork(work, f"worker-{number}") for number in range(2)])


def two_processes(folder: Path) -> None:
    """One search on two processes over gloo. A rank that dies ends the other, as under torchrun."""
    port = launched_port()

    def rank(number: int) -> None:
        here = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}})
        trainer, _ = launched.make("ddp", folder, network=launched.NoisyLeNet)
        ticket = trainer.find_ticket()
        if number == 0:
            ticket.save_pretrained(folder / "ticket")

    watch_over([fork(lambda number=number: rank(number), f"rank-{number}") for number in range(2)])


def launched_port() -> int:
    """A port that is free."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def watch_over(children: list[int]) -> None:
    """Wait for processes; when one fails, kill the others and exit with 1."""
    import signal
    import time

    left = list(children)
    while left:
        for child in list(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if not done:
                continue
            left.remove(child)
            if status:
                for other in left:
                    os.kill(other, signal.SIGKILL)
                    wait(other)
                raise SystemExit(1)
        time.sleep(0.01)
