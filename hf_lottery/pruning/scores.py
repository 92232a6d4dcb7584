"""What a weight is worth: pure functions from weights (and what else they need) to scores; low scores go first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ|, from the trained weights alone.

    `select(weights, alive, count, key=torch.abs)` selects the same without the copy that this makes.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635); "large_final" in Zhou et al. 2019 (arXiv 1905.01067).
    """
    return {name: weight.detach().abs() for name, weight in weights.items()}


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform numbers in [0, 1), from the shapes of the weights alone.

    Args:
        weights: name -> parameter; only shapes and devices are used.
        generator: a CPU generator; numbers are drawn in order of names, so a seed names one result on every device.
    """
    drawn = {name: torch.rand(weights[name].shape, generator=generator) for name in sorted(weights)}
    return {name: drawn[name].to(weight.device) for name, weight in weights.items()}


CRITERIA = {"magnitude": magnitude, "random": random}
