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
from hf_lottery.pruning.context import PruningContext
from hf_lottery.pruning.gated import gated_mlps, require_whole
from hf_lottery.pruning.groups import Key, prune_n_of_m, prune_neurons, require_divides
from hf_lottery.pruning.heads import attention_heads, prune_heads, require_projections
from hf_lottery.pruning.lora import prune_ranks, require_lora
from hf_lottery.pruning.selection.sharded import prune
from hf_lottery.pruning.units import head_units, neuron_units, rank_units, shuffle_n_of_m, shuffle_units

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


def _prune_neurons(context: PruningContext, scores: Weights, key: Key) -> Mask:
    return prune_neurons(scores, context.mask, key=key, mlps=gated_mlps(context.model), **context.amount)


def _check_neurons(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    require_whole(gated_mlps(model), weights, config.pruning_rate, rates)


def _shuffle_neurons(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    return shuffle_units(mask, neuron_units(mask, gated_mlps(model)), generator)


def _prune_heads(context: PruningContext, scores: Weights, key: Key) -> Mask:
    return prune_heads(scores, context.mask, heads=attention_heads(context.model), key=key, **context.amount)


def _check_heads(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    heads = attention_heads(model)
    require_projections(heads, weights)
    for layer in heads.values():
        require_one_rate(
            layer.names, config.pruning_rate, rates, "a head is pruned in all of its projections together"
        )


def _shuffle_heads(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    return shuffle_units(mask, head_units(attention_heads(model)), generator)


def _prune_ranks(context: PruningContext, scores: Weights, key: Key) -> Mask:
    return prune_ranks(scores, context.mask, **context.amount)


def _check_ranks(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    for a, b in require_lora(weights):
        require_one_rate([a, b], config.pruning_rate, rates, "a rank is pruned in a LoRA's A and B together")


def _shuffle_ranks(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    return shuffle_units(mask, rank_units(mask), generator)


def _prune_n_of_m(context: PruningContext, scores: Weights, key: Key) -> Mask:
    n, m = n_of_m(context.config.pattern)
    rate = context.config.pruning_rate
    chosen = Mask({name: kept for name, kept in context.mask.items() if context.rates.get(name, rate) > 0})
    pruned = prune_n_of_m(scores, chosen, n, m, key)
    return Mask({name: pruned.get(name, kept) for name, kept in context.mask.items()})


def _check_n_of_m(model: nn.Module, config: LotteryConfig, weights: Weights, rates: Mapping[str, float]) -> None:
    n, m = n_of_m(config.pattern)
    for name, weight in weights.items():
        rate = rates.get(name, config.pruning_rate)
        if name in rates and rate > 0:
            raise ValueError(
                f"pruning_rates give '{name}' {rate}, and pattern {config.pattern} has no rate: the only rate allowed "
                "with it is 0, which prunes none of them"
            )
        if rate > 0:
            require_divides(n, m, name, weight.shape)


def _shuffle_n_of_m(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    return shuffle_n_of_m(mask, n_of_m(config.pattern)[1], generator)


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
