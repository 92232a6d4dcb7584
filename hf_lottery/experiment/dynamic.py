"""The controls `set` and `rigl`: dynamic sparsity, which finds masks within one training, without a dense network."""

from __future__ import annotations

import torch

from hf_lottery.mask import Mask
from hf_lottery.pruning.random_mask import random_mask_like
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


def start_mask(trainer: LotteryMixin) -> Mask | None:
    """The mask of round 0, among whose weights a control draws its own; None: all weights."""
    if trainer.lottery_config.start_from == "dense":
        return None
    return Search(trainer).round_folder(0).mask()


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
    mask, generator = Search(trainer).round_folder(number).mask(), torch.Generator().manual_seed(seed)
    trainer.mask = random_mask_like(mask, trainer.model, trainer.lottery_config, generator, start_mask(trainer))
    trainer.restart(from_rewind_point=False)
