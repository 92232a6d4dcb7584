"""PruningContext: everything that one pruning may use, as plain values and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask

CALIBRATION_BATCHES = 8  # of the training data, for criteria that need data


class NoCalibration(ValueError):
    """There are no training data for a criterion that looks at some, or not enough for all processes."""


@dataclass(frozen=True)
class PruningContext:
    """What criteria and patterns may use, made again for each pruning.

    Args:
        model: the network, on its device. Criteria leave its weights, buffers and modes as they are.
        config: how to prune.
        mask: which weights are kept before this pruning.
        weights: parameter name -> live parameter, for the names of `mask`.
        rates: parameter name -> its own rate, where it is not `config.pruning_rate`.
        initial: returns θ_k, parameter name -> tensor; raises RuntimeError before step k of the first training.
        batches: returns the calibration batches of this process, a list, already on the device; of a network with
            batch norm, those of all processes. Raises NoCalibration where there are no training data.
        loss: batch -> the training's own loss of it, a scalar that backward can start from.
        seed: for random draws; different in every round, the same in a search that is resumed.
    """

    model: nn.Module
    config: LotteryConfig
    mask: Mask
    weights: Mapping[str, Tensor]
    rates: Mapping[str, float]
    initial: Callable[[], Mapping[str, Tensor]]
    batches: Callable[[], list[Any]]
    loss: Callable[[Any], Tensor]
    seed: int

    @property
    def amount(self) -> dict[str, Any]:
        """The arguments `rate`, `rates` and `scope` of `prune`: how much is pruned, and among which weights."""
        return {"rate": self.config.pruning_rate, "rates": self.rates, "scope": self.config.scope}

    def without(self, excluded: str) -> PruningContext:
        """The same context without the parameter `excluded`."""
        return replace(
            self,
            mask=Mask({name: kept for name, kept in self.mask.items() if name != excluded}),
            weights={name: weight for name, weight in self.weights.items() if name != excluded},
            rates={name: rate for name, rate in self.rates.items() if name != excluded},
        )
