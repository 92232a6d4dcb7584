"""Replay: how a trainer's next training starts, and what it takes over from an earlier one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, set_seed

from hf_lottery.random_state import get_rng_state, random_state_kept, set_rng_state
from hf_lottery.training.masked_step import inner_optimizer

FRESH = "fresh"
STEP_0 = "step 0"
REWIND_POINT = "rewind point"


@dataclass(frozen=True)
class Order:
    """The seeds of a training that does not have the random numbers of the first one.

    Args:
        seed: of all generators.
        data_seed: of the data order, if the trainer's arguments have a data_seed of their own.
    """

    seed: int
    data_seed: int


class Replay:
    """How the next `train()` starts. A trainer and its RewindCallback share one such object.

    Attributes:
        start: FRESH: as Trainer starts; STEP_0: at step 0, with the random numbers of the first training;
            REWIND_POINT: at step k, with the random numbers and the optimizer state of step k.
        retraining: one of `config.RETRAINING`, for a start that is not FRESH.
        start_rng: random-number state at the start of the first training. The data order comes from it.
        step_rng: random-number state at step k.
        last_lr_factor: the learning rate at the end of the first training / its initial learning rate.
        order: the seeds of the next training; None: it has the random numbers of the first.
        has_trained: whether a training has begun, so that the model may hold other weights than its initial ones.
    """

    def __init__(self):
        self.start = FRESH
        self.retraining: str | None = None
        self.start_rng: dict[str, Any] | None = None
        self.step_rng: dict[str, Any] | None = None
        self.last_lr_factor: float | None = None
        self.has_trained = False
        self.order: Order | None = None
        self._seed_rng: dict[str, Any] | None = None  # the random numbers of `order`

    def request(self, start: str, retraining: str, seed: int | None = None) -> None:
        """Set how the next training starts.

        Args:
            start: STEP_0 or REWIND_POINT.
            retraining: one of `config.RETRAINING`.
            seed: use the random numbers of this seed; None: those that `data_order` says.
        """
        self.start, self.retraining = start, retraining
        self.set_order(None if seed is None else Order(seed, seed))

    def set_order(self, order: Order | None) -> None:
        """Set the seeds of the next training; None: it has the random numbers of the first."""
        self.order, self._seed_rng = order, None
        if order is not None:
            with random_state_kept():
                set_seed(order.seed)
                self._seed_rng = get_rng_state()

    def set_start_rng(self, again: bool) -> None:
        """Before training: record the random-number state; if `again`, set the recorded one (or that of the seed)."""
        if self._seed_rng is not None:
            set_rng_state(self._seed_rng)
        elif self.start_rng is None:
            self.start_rng = get_rng_state()
        elif again:
            set_rng_state(self.start_rng)

    def set_step_rng(self) -> None:
        """At step k of a replay: set the random-number state that was recorded there (or that of the seed)."""
        set_rng_state(self.step_rng if self._seed_rng is None else self._seed_rng)

    def sets_step_rng(self, step: int) -> bool:
        """Whether the training that runs sets one at `step`, which is k. The rewind point of a ticket has none."""
        if self._seed_rng is not None:
            return self.start == REWIND_POINT or (self.start == STEP_0 and step == 0)  # so that a pair has one dropout
        return self.start == REWIND_POINT and self.step_rng is not None

    @contextmanager
    def training(self, trainer: Trainer) -> Iterator[None]:
        """Enclose one training. When it ends without an error, the next one starts FRESH again."""
        self.has_trained = True
        dataloaders = trainer.accelerator.dataloader_config
        data_seed = dataloaders.data_seed
        if self.order is not None and data_seed is not None:
            dataloaders.data_seed = self.order.data_seed  # a fixed one would give every seed the same data order
        try:
            yield
        finally:
            dataloaders.data_seed = data_seed
        self.start, self.retraining = FRESH, None
        self.set_order(None)
        if self.last_lr_factor is None:
            group = inner_optimizer(trainer.optimizer).param_groups[0]
            initial = group.get("initial_lr", group["lr"])
            self.last_lr_factor = group["lr"] / initial if initial else 0.0

    # --- fine-tuning: the learning rate stays at its last value

    def constant_schedule(self, optimizer: torch.optim.Optimizer, schedule: str) -> LambdaLR:
        """A schedule that multiplies every learning rate by `last_lr_factor`.

        Args:
            optimizer: the trainer's.
            schedule: the name of the trainer's own schedule, for the error.

        Raises:
            ValueError: the last learning rate is 0.
        """
        factor = self.last_lr_factor
        if not factor:
            raise ValueError(
                f"fine_tuning uses the last learning rate, which is 0 under lr_scheduler_type "
                f"{schedule}: choose one that ends above 0, or learning_rate_rewinding"
            )
        return LambdaLR(optimizer, lambda step: factor)

    def set_last_learning_rate(self, optimizer: torch.optim.Optimizer, scheduler: LambdaLR) -> None:
        """Set the last learning rate: loading the optimizer of step k has set the learning rate of step k."""
        groups = inner_optimizer(optimizer).param_groups
        for group in groups:
            group["lr"] = group.get("initial_lr", group["lr"]) * self.last_lr_factor
        rates = [group["lr"] for group in groups]
        scheduler.load_state_dict({**scheduler.state_dict(), "_last_lr": rates})  # these are logged


class InitialState:
    """Optimizer, scheduler and gradient scaler of a new trainer, copied so that a training can start with them again.

    If the trainer has no optimizer or scheduler yet, it makes a new one for every training.
    """

    def __init__(self, trainer: Trainer):
        self.optimizer = _state(trainer.optimizer)
        self.scheduler = _state(trainer.lr_scheduler)
        self.scaler = _state(trainer.accelerator.scaler)

    def restore(self, trainer: Trainer) -> None:
        """Give `trainer` these states, or no optimizer or scheduler where it had none."""
        if self.optimizer is None:
            trainer.optimizer = None
        else:
            inner_optimizer(trainer.optimizer).load_state_dict(copy.deepcopy(self.optimizer))
        if self.scheduler is None:
            trainer.lr_scheduler = None
        else:
            trainer.lr_scheduler.load_state_dict(copy.deepcopy(self.scheduler))
        if self.scaler is not None:
            trainer.accelerator.scaler.load_state_dict(copy.deepcopy(self.scaler))


def _state(part) -> dict[str, Any] | None:
    return None if part is None else copy.deepcopy(part.state_dict())
