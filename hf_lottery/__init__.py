"""hf_lottery: find, verify and publish lottery tickets with the Hugging Face stack."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_lottery.config import LotteryConfig
    from hf_lottery.mask import Mask
    from hf_lottery.ticket.rewind_point import RewindPoint
    from hf_lottery.ticket.ticket import Ticket
    from hf_lottery.training.rewinding import RewindCallback
    from hf_lottery.training.trainer import LotteryMixin, LotteryTrainer

# name -> where it is; imported at first use, so that the command line answers without waiting for torch
_HOME = {
    "LotteryConfig": "config",
    "LotteryMixin": "training.trainer",
    "LotteryTrainer": "training.trainer",
    "Mask": "mask",
    "RewindCallback": "training.rewinding",
    "RewindPoint": "ticket.rewind_point",
    "Ticket": "ticket.ticket",
}
__all__ = [
    "LotteryConfig",
    "LotteryMixin",
    "LotteryTrainer",
    "Mask",
    "RewindCallback",
    "RewindPoint",
    "Ticket",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hf_lottery' has no attribute '{name}'")
    return getattr(import_module(f"hf_lottery.{_HOME[name]}"), name)
