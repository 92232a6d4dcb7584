"""A random mask that is like a given one: as much of every tensor, in the units of the pattern."""

from __future__ import annotations

import torch
from torch import nn

from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.pruning.embeddings import token_embeddings
from hf_lottery.pruning.patterns import pattern_of
from hf_lottery.pruning.units import row_units, shuffle_units

_MOST_DRAWS = 30


def random_mask_like(
    mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator, among: Mask | None = None
) -> Mask:
    """A random mask that keeps as many weights of every tensor as `mask`, and is one that the pattern can make.

    What the pattern prunes together is kept or pruned together: whole neurons, heads in all four projections, ranks,
    rows of the embeddings; with n:m every group of m keeps as many as before. Every such mask is equally likely, but
    for `mask` itself, which is no control of itself: where units are few it can come up, and another is drawn.

    Args:
        mask: made by `next_mask` of the same config.
        model: the network.
        config: how `mask` was pruned.
        generator: a CPU generator. With pattern weight, the mask is that of `Mask.shuffled`.
        among: the weights that may be kept, those of `mask` among them; None: all. Only with pattern weight.

    Raises:
        ValueError: `among` is given with another pattern.
    """
    if among is not None:
        require_single_weights(config)
        return _shuffled_among(mask, among, generator)
    if (config.pattern, config.prune_embeddings) == ("weight", None):
        return mask.shuffled(generator)
    for _ in range(_MOST_DRAWS):  # all are equal only if there is nothing to exchange
        drawn = _draw(mask, model, config, generator)
        if drawn != mask:
            break
    return drawn


def require_single_weights(config: LotteryConfig) -> None:
    """Raise a ValueError for a pattern whose random masks cannot be drawn among the weights of a sparse model."""
    if (config.pattern, config.prune_embeddings) != ("weight", None):
        what = "prune_embeddings is rows" if config.prune_embeddings else f"pattern is {config.pattern}"
        raise ValueError(
            f"start_from is zeros and {what}, so that there is no random mask of as many weights of the sparse model: "
            "leave the control random_mask out, or use pattern weight"
        )


def _shuffled_among(mask: Mask, among: Mask, generator: torch.Generator) -> Mask:
    tensors = dict(mask)
    for name in sorted(mask):
        places = among[name].to(mask[name].device)
        kept = mask[name][places]
        tensors[name] = torch.zeros_like(mask[name])
        tensors[name][places] = kept[torch.randperm(kept.numel(), generator=generator).to(kept.device)]
    return Mask(tensors)


def _draw(mask: Mask, model: nn.Module, config: LotteryConfig, generator: torch.Generator) -> Mask:
    shuffle = pattern_of(config).shuffle
    if config.prune_embeddings is None:
        return shuffle(mask, model, config, generator)
    table = token_embeddings(model)
    rest = shuffle(Mask({name: mask[name] for name in mask if name != table}), model, config, generator)
    own = Mask({table: mask[table]})
    rows = shuffle_units(own, row_units(own), generator)
    return Mask({name: rows[name] if name == table else rest[name] for name in mask})
