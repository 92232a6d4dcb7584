"""Reads and writes the whole fp32 value of a parameter under DeepSpeed's ZeRO, by DeepSpeed's public functions.

The optimizer steps on fp32 masters; every process holds a part of them. The module's own tensor is a copy that the
next step overwrites (ZeRO-1, 2), or empty (ZeRO-3). All functions are collective: every rank calls them in the same
order. DeepSpeed is imported only when a function gets one of its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_zero(tensor: Tensor) -> bool:
    """Whether a DeepSpeed engine holds this parameter. (DeepSpeed's own functions check these attributes.)"""
    return is_zero3(tensor) or hasattr(tensor, "_hp_mapping")


def is_zero3(tensor: Tensor) -> bool:
    """Whether it is split over the processes (ZeRO-3), so that its own shape is empty."""
    return hasattr(tensor, "ds_id")


def full_value(parameter: Tensor) -> Tensor:
    """A parameter's whole value: its fp32 master, in the parameter's own dtype if that loses nothing."""
    import deepspeed

    if not parameter.requires_grad:  # frozen: it has no master
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_zero3(parameter)):
            return parameter.data.clone()
    master = deepspeed.utils.safe_get_full_fp32_param(parameter)
    own = master.to(parameter.dtype)
    return own if torch.equal(own.float(), master) else master


@torch.no_grad()
def write_value(parameter: Tensor, value: Tensor) -> None:
    """Write a whole value, the same on every rank, into the master and into the module's own copy."""
    import deepspeed

    value = value.to(parameter.device)
    _write_part(parameter, value.float())
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_zero3(parameter)):
        parameter.data.copy_(value)


@torch.no_grad()
def mask_values(
    masks: Sequence[tuple[Tensor, Tensor, Tensor | None]], state: Mapping[Tensor, Mapping[str, Any]]
) -> None:
    """Write zero, or given values, into the pruned weights of parameters, and zero into their optimizer state.

    Args:
        masks: (parameter, its whole mask: bool, its whole values where pruned; None: zero), in the same order on every
            rank.
        state: of the torch optimizer inside DeepSpeed's, over flat masters: empty before the first step.
    """
    by_coordinate = {
        master: [entry for entry in entries.values() if torch.is_tensor(entry) and entry.shape == master.shape]
        for master, entries in state.items()
    }
    if any(by_coordinate.values()):
        # DeepSpeed's functions cannot write into a loaded state before its first step, but into the masters they can:
        # a nan there marks the coordinates of the flat state that are pruned.
        for parameter, kept, _ in masks:
            _write_part(parameter, full_value(parameter).float().masked_fill(~kept.to(parameter.device), torch.nan))
        for master, entries in by_coordinate.items():
            for entry in entries:
                entry.masked_fill_(master.isnan().to(entry.device), 0)
    for parameter, kept, value in masks:
        whole, kept = full_value(parameter), kept.to(parameter.device)
        pruned = torch.zeros_like(whole) if value is None else value.to(whole)
        write_value(parameter, torch.where(kept, whole, pruned))


def _write_part(parameter: Tensor, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if not is_zero3(parameter):
        safe_set_full_fp32_param(parameter, value)
        return
    # safe_set_full_fp32_param refuses values that do not divide by the processes; parts are padded to equal length
    length = parameter.ds_tensor.numel()
    rank = dist.get_rank(group=parameter.ds_process_group)
    part = value.flatten()[rank * length : (rank + 1) * length]
    safe_set_local_fp32_param(parameter, torch.nn.functional.pad(part, (0, length - part.numel())))
