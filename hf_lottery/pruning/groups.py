"""Groups of weights that are pruned together: N of every M consecutive weights, and whole neurons.

A group's score is the mean of its weights' scores, and groups are pruned as weights are: exactly
n = round(rate · alive groups), by the same scopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import prune

Key = Callable[[Tensor], Tensor] | None


def prune_n_of_m(scores: Mapping[str, Tensor], alive: Mask, n: int, m: int, key: Key = None) -> Mask:
    """Keep the `n` highest scores of every `m` consecutive weights of a row; NVIDIA's sparse tensor cores compute 2:4.

    A row is a linear layer's input features, or a convolution's input channels. One pruning makes the whole
    pattern, so there is no rate; where fewer than `n` of `m` are alive, all of these are kept. If scores are equal,
    the first is pruned first.

    Args:
        scores: name -> score, (out, in, …).
        alive: the mask before.
        n, m: 0 < n < m.
        key: elementwise function applied to the scores.

    Raises:
        ValueError: `m` does not divide a tensor's input dimension, or a score of a living weight is NaN.

    Source: Mishra et al. 2021 (arXiv 2104.08378); Zhou et al. 2021 (arXiv 2102.04010).
    """
    result = {}
    for name, mask in alive.items():
        score = comparable(scores[name], key, mask, name)
        require_divides(n, m, name, mask.shape)
        score = score.clamp(min=torch.finfo(score.dtype).min)  # -inf is for pruned weights alone
        groups = score.masked_fill(~mask, -torch.inf).movedim(1, -1).unflatten(-1, (-1, m))
        # stable and ascending: if scores are equal, the earlier one is pruned first; the last n are kept
        order = groups.sort(dim=-1, stable=True).indices
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., m - n :], True)
        result[name] = mask & kept.flatten(-2).movedim(-1, 1)
    return Mask(result)


def require_divides(n: int, m: int, name: str, shape: torch.Size) -> None:
    """Raise a ValueError if `m` does not divide the input dimension of the weight `name`."""
    size = shape[1] if len(shape) > 1 else shape.numel()
    if len(shape) < 2 or size % m:
        raise ValueError(
            f"pattern {n}:{m} needs {m} to divide the input dimension of '{name}', which is {size}; "
            f"take an M that divides it, or name the layer in exclude_modules"
        )


def neuron_scores(scores: Mapping[str, Tensor], alive: Mask, key: Key = None) -> dict[str, Tensor]:
    """The score of each neuron: the mean score of the weights into it (a row, or an output channel's filter).

    Returns:
        name -> (out,); pruned weights count as 0.
    """
    return {name: _mean(comparable(scores[name], key, mask, name), mask) for name, mask in alive.items()}


def prune_neurons(
    scores: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
    key: Key = None,
) -> Mask:
    """One pruning of whole neurons: rows of linear layers, filters of convolutions.

    A neuron is alive while any weight into it is. The neurons of a classifier are its classes: give it rate 0.

    Args:
        scores, alive, rate, rates, scope, key: as for `prune`, with neurons in place of weights.

    Raises:
        ValueError: as `prune`.
    """
    living = Mask({name: mask.flatten(1).any(1) for name, mask in alive.items()})
    kept = prune(neuron_scores(scores, alive, key), living, rate, rates, scope)
    return Mask({name: mask & kept[name].view(-1, *[1] * (mask.dim() - 1)) for name, mask in alive.items()})


def comparable(scores: Tensor, key: Key, alive: Tensor, name: str) -> Tensor:
    """`key(scores)` as float32 or float64 on the mask's device, 0 where a weight is pruned.

    Raises:
        ValueError: a score of an alive weight is NaN.
    """
    scores = scores.detach().to(alive.device)
    scores = scores if key is None else key(scores)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if (scores.isnan() & alive).any():
        raise ValueError(
            f"a score of '{name}' is NaN; look for the first step at which the loss or a gradient was not finite"
        )
    return scores.masked_fill(~alive, 0)


def _mean(scores: Tensor, alive: Tensor) -> Tensor:
    return (scores * alive).flatten(1).mean(1)
