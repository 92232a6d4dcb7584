"""A parameter under DeepSpeed's ZeRO: the fp32 value behind it, whole, through DeepSpeed's public functions.

The optimizer steps on fp32 masters of which every process holds a part; what the module shows is a copy that the next
step overwrites (ZeRO-1, 2) or nothing at all (ZeRO-3). All functions are collective: every rank calls them in the same
order. DeepSpeed is imported only where one of its parameters is at hand.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_zero(tensor: Tensor) -> bool:
    """Whether a DeepSpeed engine holds this parameter. (DeepSpeed's own functions tell it by these attributes.)"""
    return is_zero3(tensor) or hasattr(tensor, "_hp_mapping")


def is_zero3(tensor: Tensor) -> bool:
    """Whether it is split over the processes (ZeRO-3), so that its own shape is empty."""
    return hasattr(tensor, "ds_id")


def full_value(parameter: Tensor) -> Tensor:
    """The whole of a parameter: its fp32 master, in the parameter's own dtype where that loses nothing."""
    import deepspeed

    if not parameter.requires_grad:  # frozen: it has no master
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_zero3(parameter)):
            return parameter.data.clone()
    master = deepspeed.utils.safe_get_full_fp32_param(parameter)
    own = master.to(parameter.dtype)
    return own if torch.equal(own.float(), master) else master


@torch.no_grad()
def write_value(parameter: Tensor, value: Tensor) -> None:
    """Write a whole value, the same on every rank, into the master and into what the module shows."""
    import deepspeed

    value = value.to(parameter.device)
    _write_part(parameter, value.float(), None)
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_zero3(parameter)):
        parameter.data.copy_(value)


@torch.no_grad()
def mask_value(parameter: Tensor, kept: Tensor, state_keys: list[str]) -> None:
    """Write zero into the pruned weights of a parameter and of its optimizer state.

    Args:
        kept: bool, the whole mask.
        state_keys: the state that is held by coordinate, such as `exp_avg`.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    kept = kept.to(parameter.device)
    write_value(parameter, full_value(parameter).masked_fill(~kept, 0))
    for key in state_keys:
        _write_part(parameter, safe_get_full_optimizer_state(parameter, key).masked_fill(~kept, 0), key)


def _write_part(parameter: Tensor, value: Tensor, key: str | None) -> None:
    from deepspeed import utils

    if not is_zero3(parameter):
        arguments = (parameter, value) if key is None else (parameter, value, key)
        (utils.safe_set_full_fp32_param if key is None else utils.safe_set_full_optimizer_state)(*arguments)
        return
    # safe_set_full_* refuses values that do not divide by the number of processes; parts are padded to equal length
    length = parameter.ds_tensor.numel()
    rank = dist.get_rank(group=parameter.ds_process_group)
    flat = value.flatten()[rank * length : (rank + 1) * length]
    part = torch.nn.functional.pad(flat, (0, length - flat.numel()))
    if key is None:
        utils.safe_set_local_fp32_param(parameter, part)
    else:
        utils.safe_set_local_optimizer_state(parameter, part, key)
