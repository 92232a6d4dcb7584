"""Which tensors hold nan or infinity, and where."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from hf_lottery.distributed.processes import own_part

K = TypeVar("K", bound=Hashable)


@torch.no_grad()
def not_finite(tensors: Mapping[K, Tensor]) -> list[K]:
    """The keys of tensors that hold nan or ±inf, on this rank. One wait for the device, and no copy of a tensor.

    Tensors of other than floats of 16 bits and more are passed over.
    """
    checks = {}
    for key, tensor in tensors.items():
        part = own_part(tensor)
        if part.is_floating_point() and part.element_size() > 1 and part.numel():
            low, high = part.aminmax()  # nan and inf come through
            checks[key] = ((low - low) + (high - high)).float()  # 0 if both are finite, else nan
    if not checks:
        return []
    device = next(iter(checks.values())).device
    values = torch.stack([check.to(device) for check in checks.values()]).tolist()
    return [key for key, value in zip(checks, values, strict=True) if math.isnan(value)]


def first_not_finite(tensor: Tensor) -> tuple[list[int], float]:
    """The place and the value of a tensor's first nan or ±inf; it has one."""
    place = (~torch.isfinite(tensor)).nonzero()[0].tolist()
    return place, float(tensor[tuple(place)])
