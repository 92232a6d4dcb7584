"""Groups of weights that are pruned together: N of every M consecutive weights, and whole neurons.

A neuron is the weights into it, and in a gated MLP also those out of it: see `gated` and `recurrent`. All tensors here
are laid out as (outputs, inputs, …): see `axes`.

A group's score is the mean of its weights' scores, and groups are pruned as weights are: exactly
n = round(rate · alive groups), by the same scopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.gated import GatedMLP, require_whole
from hf_lottery.pruning.recurrent import RecurrentLayer
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
    return {name: _neuron_mean(comparable(scores[name], key, mask, name), name) for name, mask in alive.items()}


def prune_neurons(
    scores: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
    key: Key = None,
    mlps: Mapping[str, GatedMLP | RecurrentLayer] | None = None,
) -> Mask:
    """One pruning of whole neurons: rows of linear layers, filters of convolutions.

    A neuron is alive while any weight into it is. The neurons of a classifier are its classes: give it rate 0.

    A neuron of a gated MLP is its row of gate, its row of up and its column of down, which are pruned together; it is
    alive while it has weights in all three, and its score is their mean. The rows of down are no neurons. A neuron of
    a recurrent layer is its row of every gate. In all else, weights out of a neuron stay.

    Args:
        scores, alive, rate, rates, scope, key: as for `prune`, with neurons in place of weights; tensors are laid out
            as (outputs, inputs, …).
        mlps: the gated MLPs and recurrent layers, as `gated_mlps(model)` and `recurrent_layers(model)` find them;
            those of which `alive` has no weight are passed over.

    Raises:
        ValueError: as `prune`; only a part of one of `mlps` is in `alive`, or its parts have different rates; the
            scores of a neuron have no mean.
    """
    rates = dict(rates or {})
    require_whole(mlps or {}, alive, rate, rates)
    joint = {layer.names[0]: layer for layer in (mlps or {}).values() if layer.names[0] in alive}
    in_joint = {name for layer in joint.values() for name in layer.names}
    plain = Mask({name: mask for name, mask in alive.items() if name not in in_joint})
    living = {name: mask.flatten(1).any(1) for name, mask in plain.items()}
    of_neurons = neuron_scores(scores, plain, key)
    for first, layer in joint.items():
        living[first] = layer.living(alive)
        own = {name: comparable(scores[name], key, alive[name], name) for name in layer.names}
        of_neurons[first] = group_mean(*layer.sums(own), first)
    own_rates = {name: value for name, value in rates.items() if name in living or name not in alive}
    kept = prune(of_neurons, Mask(living), rate, own_rates, scope)
    result = {name: mask & kept[name].view(-1, *[1] * (mask.dim() - 1)) for name, mask in plain.items()}
    for first, layer in joint.items():
        for name in layer.names:
            result[name] = alive[name] & layer.expand(kept[first].to(alive[name].device), name, alive[name].shape)
    return Mask({name: result[name] for name in alive})


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


def _neuron_mean(scores: Tensor, name: str) -> Tensor:
    rows = scores.flatten(1)
    return group_mean(rows.sum(1), rows.shape[1], name)


def group_mean(total: Tensor, size: int, name: str, what: str = "neuron") -> Tensor:
    """(groups,): sums of scores over the number of weights of each group.

    Raises:
        ValueError: a group has scores of +inf and of −inf, which have no mean.
    """
    if total.isnan().any():
        group = int(total.isnan().nonzero()[0])
        raise ValueError(
            f"{what} {group} of '{name}' has scores of inf and of -inf, which have no mean: look for weights or "
            "gradients that are not finite, or let the criterion return finite scores"
        )
    return total / size
