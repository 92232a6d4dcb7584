"""The controls `set` and `rigl`: dynamic sparsity, which finds masks within one training, without a dense network."""

from __future__ import annotations

import torch

from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.dynamic_sparsity import DynamicSparsity
from hf_lottery.training.mask_schedule import RIGL, SET
from hf_lottery.training.search import Search
from hf_lottery.training.trainer import LotteryMixin


def set_control(trainer: LotteryMixin, number: int, seed: int) -> None:
    """θ_0 under a random mask of the ticket's layer-wise density, which training changes: SET, Mocanu et al. 2018."""
    _start(trainer, number, seed, SET)


def rigl(trainer: LotteryMixin, number: int, seed: int) -> None:
    """θ_0 under a random mask of the ticket's layer-wise density, which training changes: RigL, Evci et al. 2020."""
    _start(trainer, number, seed, RIGL)


def _start(trainer: LotteryMixin, number: int, seed: int, rule: str) -> None:
    """From step 0 also if tickets rewind to a later one: the dense network would have to be trained to get there.

    Raises:
        RuntimeError: θ_0 is gone, because the trainer has trained its model already.
    """
    DynamicSparsity(trainer, rule, seed)
    weights = trainer.rewind_point
    if weights.step > 0:
        if trainer.replay.has_trained:
            raise RuntimeError(f"the control {rule} starts from θ_0, and the model was trained: make a new trainer")
        weights = RewindPoint.capture(trainer.model)
    weights.restore(trainer.model)
    mask = Search(trainer).round_folder(number).mask()
    trainer.mask = mask.shuffled(torch.Generator().manual_seed(seed))
    trainer.restart(from_rewind_point=False)
