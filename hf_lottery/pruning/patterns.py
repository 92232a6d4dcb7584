"""Patterns: which weights are pruned together.

A new pattern is one function here (or in a file of its own) with a line in `PATTERNS`, and its name in
`hf_lottery.config.PATTERNS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_lottery.config import LotteryConfig, n_of_m
from hf_lottery.mask import Mask
from hf_lottery.pruning.attention import attention_heads, require_known
from hf_lottery.pruning.axes import Axes, known_axes, laid_back, laid_out, require_axes
from hf_lottery.pruning.context import PruningContext
from hf_lottery.pruning.gated import GatedMLP, gated_mlps, require_whole
from hf_lottery.pruning.groups import Key, prune_n_of_m, prune_neurons, require_divides
from hf_lottery.pruning.heads import prune_heads, require_projections
from hf_lottery.pruning.lora import prune_ranks, require_lora
from hf_lottery.pruning.recurrent import RecurrentLayer, recurrent_layers
from hf_lottery.pruning.selection.sharded import prune
from hf_lottery.pruning.units import neuron_units, rank_units, shuffle_n_of_m, shuffle_units

Weights = Mapping[str, Tensor]


def _shuffle_weights(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    return mask.shuffled(generator)


@dataclass(frozen=True)
class Pattern:
    """How groups of weights are pruned.

    Args:
        prune: (context, scores, key) -> the new mask. `scores` is name -> score, `key` is None or an elementwise
            function to apply to the scores.
        check: (model, config, weights, rates) -> None; raises a ValueError for a network without such groups.
        uses_criterion: False: `prune` scores its groups by the weights themselves, and gets these as `scores`.
        shuffle: (mask, model, config, generator) -> a random mask of such groups with the same counts, every one
            equally likely.
    """

    prune: Callable[[PruningContext, Weights, Key], Mask]
    check: Callable[[nn.Module, LotteryConfig, Weights, Mapping[str, float]], None] | None = None
    uses_criterion: bool = True
    shuffle: Callable[[Mask, nn.Module, LotteryConfig, torch.Generator], Mask] = _shuffle_weights


def pattern_of(config: LotteryConfig) -> Pattern:
    """The pattern that a config names."""
    return PATTERNS["n:m" if n_of_m(config.pattern) else config.pattern]


def _prune_weights(context: PruningContext, scores: Weights, key: Key) -> Mask:
    return prune(scores, context.mask, key=key, **context.amount)


def _joint_neurons(model: nn.Module) -> dict[str, GatedMLP | RecurrentLayer]:
    """The layers with neurons that lie in several weights."""
    return {**gated_mlps(model), **recurrent_layers(model)}


def _to_prune(names: Mapping[str, object], config: LotteryConfig, rates: Mapping[str, float]) -> list[str]:
    """The names whose rate is not 0."""
    return [name for name in names if rates.get(name, config.pruning_rate) > 0]


def _with(mask: Mask, changed: Mapping[str, Tensor]) -> Mask:
    return Mask({name: changed.get(name, kept) for name, kept in mask.items()})


def _axes(context: PruningContext) -> dict[str, Axes]:
    """The axes of the weights that a pattern of outputs and inputs prunes."""
    names = _to_prune(context.mask, context.config, context.rates)
    return require_axes(context.model, names, f"pattern {context.config.pattern}")


def _prune_neurons(context: PruningContext, scores: Weights, key: Key) -> Mask:
    axes, amount = _axes(context), context.amount
    amount["rates"] = {name: rate for name, rate in context.rates.items() if name in axes}
    alive = Mask(laid_out(context.mask, axes))
    kept = prune_neurons(laid_out(scores, axes), alive, key=key, mlps=_joint_neurons(context.model), **amount)
    return _with(context.mask, laid_back(kept, axes))


def _check_neurons(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    require_whole(_joint_neurons(model), weights, config.pruning_rate, rates)
    require_axes(model, _to_prune(weights, config, rates), "pattern neuron")


def _shuffle_neurons(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    axes = known_axes(model, mask)  # of others, no neuron is pruned
    rows = Mask(laid_out(mask, axes))
    return _with(mask, laid_back(shuffle_units(rows, neuron_units(rows, _joint_neurons(model)), generator), axes))


def _prune_heads(context: PruningContext, scores: Weights, key: Key) -> Mask:
    return prune_heads(scores, context.mask, heads=attention_heads(context.model), key=key, **context.amount)


def _check_heads(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    heads = attention_heads(model)
    require_known(model, heads, _to_prune(weights, config, rates))
    for layer in require_projections(heads, weights).values():
        why = "a head is pruned in all of its projections together"
        require_one_rate(layer.names, config.pruning_rate, rates, why)


def _shuffle_heads(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    heads = require_projections(attention_heads(model), mask)
    return shuffle_units(mask, heads.values(), generator)


def _prune_ranks(context: PruningContext, scores: Weights, key: Key) -> Mask:
    return prune_ranks(scores, context.mask, **context.amount)


def _check_ranks(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    for a, b in require_lora(weights):
        require_one_rate([a, b], config.pruning_rate, rates, "a rank is pruned in a LoRA's A and B together")


def _shuffle_ranks(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    return shuffle_units(mask, rank_units(mask), generator)


def _prune_n_of_m(context: PruningContext, scores: Weights, key: Key) -> Mask:
    axes = _axes(context)
    pruned = prune_n_of_m(
        laid_out(scores, axes), Mask(laid_out(context.mask, axes)), *n_of_m(context.config.pattern), key
    )
    return _with(context.mask, laid_back(pruned, axes))


def _check_n_of_m(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    for name in weights:
        if rates.get(name, 0) > 0:
            raise ValueError(
                f"pruning_rates give '{name}' {rates[name]}, and pattern {config.pattern} has no rate: the only rate "
                "allowed with it is 0, which prunes none of them"
            )
    axes = require_axes(model, _to_prune(weights, config, rates), f"pattern {config.pattern}")
    for name, weight in laid_out(weights, axes).items():
        require_divides(*n_of_m(config.pattern), name, weight.shape)


def _shuffle_n_of_m(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    axes = known_axes(model, [name for name in mask if not mask[name].all()])
    groups = shuffle_n_of_m(Mask(laid_out(mask, axes)), n_of_m(config.pattern)[1], generator)
    return _with(mask, laid_back(groups, axes))


def require_one_rate(names: Iterable[str], rate: float, rates: Mapping[str, float], why: str) -> None:
    """Raise a ValueError if the weights of one group, which are pruned together, have different pruning rates."""
    own = {name: rates.get(name, rate) for name in names}
    first = next(iter(own))
    odd = next((name for name in own if own[name] != own[first]), None)
    if odd is not None:
        raise ValueError(
            f"pruning_rates give '{first}' {own[first]:g} and '{odd}' {own[odd]:g}, and {why}: give them the same rate"
        )


PATTERNS: dict[str, Pattern] = {
    "weight": Pattern(_prune_weights),
    "neuron": Pattern(_prune_neurons, _check_neurons, shuffle=_shuffle_neurons),
    "head": Pattern(_prune_heads, _check_heads, shuffle=_shuffle_heads),
    "rank": Pattern(_prune_ranks, _check_ranks, uses_criterion=False, shuffle=_shuffle_ranks),
    "n:m": Pattern(_prune_n_of_m, _check_n_of_m, shuffle=_shuffle_n_of_m),
}
