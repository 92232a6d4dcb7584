"""A criterion that the user wrote: `LotteryConfig(criterion=my_scores)`.

    def my_scores(weights: Mapping[str, Tensor], context: PruningContext) -> dict[str, Tensor]:
        initial = context.initial()
        return {name: (weight - initial[name].to(weight.device)).abs() for name, weight in weights.items()}

It returns one score per weight; the lowest are pruned. It runs under a fixed seed and without dropout, so that
`context.batches()` and `context.loss(batch)` give the same in a search that is resumed. Tickets record its name.
With several processes each calls it with its own batches, and the scores are the mean over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_lottery.distributed.processes import world_size
from hf_lottery.mask import Mask
from hf_lottery.pruning.context import PruningContext

Scores = dict[str, Tensor]


def call_custom(
    function: Callable[..., Scores], weights: Mapping[str, Tensor], context: PruningContext
) -> dict[str, Tensor]:
    """The scores of a user's function; everything is checked except NaN.

    Returns:
        name -> score on the device of its weight; with several processes, a copy.

    Raises:
        ValueError: a score is missing, belongs to no weight, is no float tensor, or is not shaped as its weight.
    """
    scores, name = function(weights, context), function.__name__
    if not isinstance(scores, Mapping):
        raise ValueError(f"criterion {name} returned a {type(scores).__name__}: return a dict, name -> score")
    for parameter in scores:
        if parameter not in weights:
            raise ValueError(f"criterion {name} scored '{parameter}', which is not pruned: score the given weights")
    for parameter, weight in weights.items():
        if parameter not in scores:
            raise ValueError(f"criterion {name} returned no scores for '{parameter}': return them for every weight")
        _require_float_like(weight, scores[parameter], parameter, name)
    copy = world_size() > 1  # these are averaged in place, and may be the weights themselves
    return {
        parameter: scores[parameter].detach().to(weight.device, copy=copy, memory_format=torch.contiguous_format)
        for parameter, weight in weights.items()
    }


def require_no_nan(scores: Mapping[str, Tensor], mask: Mask, name: str) -> None:
    """Raise a ValueError if the criterion `name` scored a weight that is not pruned yet as NaN.

    Called after scores are averaged over processes, so that all processes raise the error, or none.
    """
    for parameter, score in scores.items():
        if (score.isnan() & mask[parameter].to(score.device)).any():
            raise ValueError(f"criterion {name} returned NaN for '{parameter}': return numbers for all weights")


def _require_float_like(weight: Tensor, score: Tensor, parameter: str, name: str) -> None:
    if not isinstance(score, Tensor) or not score.is_floating_point():
        what = f"of {score.dtype}" if isinstance(score, Tensor) else f"of type {type(score).__name__}"
        raise ValueError(f"criterion {name} returned scores {what} for '{parameter}': return a float tensor")
    if score.shape != weight.shape:
        raise ValueError(
            f"criterion {name} returned scores of shape {tuple(score.shape)} for '{parameter}', whose shape is "
            f"{tuple(weight.shape)}: return one score per weight"
        )
