"""What is removed together: N of every M weights, whole neurons, whole attention heads.

A group of weights is worth the mean of its weights' scores, and groups are pruned as weights are: exactly
n = round(rate · alive groups), by the same scopes. (Whole ranks of a LoRA are in lora.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.heads import Heads
from hf_lottery.pruning.selection.select import prune

Key = Callable[[Tensor], Tensor] | None


def prune_n_of_m(scores: Mapping[str, Tensor], alive: Mask, n: int, m: int, key: Key = None) -> Mask:
    """Keep the `n` best of every `m` consecutive weights of a row: 2:4 is what NVIDIA's sparse tensor cores multiply.

    Rows run along a linear layer's input features, or a convolution's input channels. One pruning makes the whole
    pattern, so there is no rate; where fewer than `n` of `m` are alive, these stay. Of equals the first goes first.

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
        score = _seen(scores[name], key, mask, name)
        require_divides(n, m, name, mask.shape)
        groups = score.masked_fill(~mask, -torch.inf).movedim(1, -1).unflatten(-1, (-1, m))
        # stable and ascending: of equal scores the earlier is further from the n that stay
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
    """What each neuron is worth: the mean score of the weights into it (a row, or an output channel's filter).

    Returns:
        name -> (out,); pruned weights count as 0.
    """
    return {name: _mean(_seen(scores[name], key, mask, name), mask) for name, mask in alive.items()}


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


def head_scores(
    scores: Mapping[str, Tensor], alive: Mask, heads: Mapping[str, Heads], key: Key = None
) -> dict[str, Tensor]:
    """What each head is worth: the mean score of its weights in all four projections.

    Returns:
        name of the attention layer -> (heads,); pruned weights count as 0.
    """
    result = {}
    for layer, those in heads.items():
        views = {
            name: those.view(_seen(scores[name], key, alive[name], name) * alive[name], name) for name in those.names
        }
        total = sum(view.sum(1) for view in views.values())
        result[layer] = total / sum(view.shape[1] for view in views.values())
    return result


def prune_heads(
    scores: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    heads: Mapping[str, Heads],
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
    key: Key = None,
) -> Mask:
    """One pruning of whole attention heads; tensors of `alive` that are of no attention layer stay as they are.

    With grouped queries a key-value head goes together with all the query heads that share it. A head is alive while
    any of its weights is.

    Args:
        scores, alive, rate, scope, key: as for `prune`, with heads in place of weights.
        heads: the attention layers, as `attention_heads(model)` finds them.
        rates: parameter name -> its own rate; those of one attention layer are the same.

    Raises:
        ValueError: as `prune`; a projection of a layer is not in `alive`, or has another rate than the others.
    """
    living, layer_rates = {}, {}
    require_projections(heads, alive)
    for layer, those in heads.items():
        of_layer = {(rates or {}).get(name, rate) for name in those.names}
        if len(of_layer) > 1:
            raise ValueError(f"the projections of '{layer}' have different pruning rates; heads need one for all")
        layer_rates[layer] = of_layer.pop()
        living[layer] = torch.stack([those.view(alive[name], name).any(1) for name in those.names]).any(0)
    kept = prune(head_scores(scores, alive, heads, key), Mask(living), rate, layer_rates, scope)
    result = dict(alive)
    for layer, those in heads.items():
        for name in those.names:
            result[name] = alive[name] & those.expand(kept[layer].to(alive[name].device), name, alive[name].shape)
    return Mask(result)


def require_projections(heads: Mapping[str, Heads], names: Collection[str]) -> None:
    """Raise a ValueError if a projection of an attention layer is not among the `names` of weights to prune."""
    for layer, those in heads.items():
        for name in those.names:
            if name not in names:
                raise ValueError(
                    f"a head goes from all four projections of '{layer}', and '{name}' is not among the weights that "
                    "are pruned; add it to target_modules"
                )


def _seen(scores: Tensor, key: Key, alive: Tensor, name: str) -> Tensor:
    """Scores as they compare, float32 or float64, on the mask's device."""
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
