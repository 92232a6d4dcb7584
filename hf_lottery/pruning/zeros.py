"""The zeros of a model that is sparse already: noticed, and on request the mask of round 0."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask

BY_CHANCE = 0.01  # of a tensor's weights: fewer zeros than this are no sparsity


def zero_counts(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> how many weights are exactly zero, of the tensors that are sparse.

    Not counted are tensors with few zeros, and those that are zero throughout: a new LoRA's B, or another layer that
    starts at zero to be trained.
    """
    counts = {name: _zeros(weight) for name, weight in weights.items()}
    return {name: n for name, n in counts.items() if BY_CHANCE * weights[name].numel() < n < weights[name].numel()}


def mask_of_zeros(weights: Mapping[str, Tensor]) -> Mask:
    """The mask that keeps what is not zero. A tensor that is zero throughout is kept whole: it starts at zero.

    Raises:
        ValueError: no weight is zero, or no tensor has both zeros and other values.
    """
    masks = {}
    for name, weight in weights.items():
        kept = weight.detach() != 0
        masks[name] = kept if kept.any() else torch.ones_like(kept)
    mask = Mask(masks)
    if mask.count() == mask.numel():
        raise ValueError(
            "start_from is zeros, and none of the weights to prune is zero: leave start_from out, or see that the "
            "sparse weights are the ones that are loaded"
        )
    return mask


def _zeros(weight: Tensor) -> int:
    return weight.numel() - int(weight.detach().count_nonzero())
