"""Several processes: which one writes, checks that all agree, and tensors of which each process holds a shard.

Every function also works in a single process, where it costs nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_lottery.distributed.deepspeed import full_value, is_zero, is_zero3, write_value

T = TypeVar("T")


def world_size() -> int:
    """How many processes train together; 1 before they communicate."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which alone claims, writes and prints."""
    return rank() == 0


def rank() -> int:
    """Which of the processes this one is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Wait for all ranks. What rank 0 wrote before, the others can read afterwards."""
    if world_size() > 1:
        dist.barrier()


def leave() -> None:
    """Stop communicating. A process calls this last, if it ends without an error.

    A thread of gloo that still runs when Python ends can abort the process after its work was done
    (pytorch/pytorch#190489). These threads end with the last reference to their group, which trainers also hold.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        barrier()
        dist.destroy_process_group()


def from_main(decide: Callable[[], T]) -> T:
    """Call `decide` on rank 0; return its result on every rank, or raise its error on every rank.

    Use it for what is read from a disk: ranks that read at different times could see different files.
    """
    if world_size() == 1:
        return decide()
    outcome: list = [None, None]
    if is_main():
        try:
            outcome[0] = decide()
        except Exception as error:  # sent to all ranks, or they would wait for ever
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gathered(value: T) -> list[T]:
    """The value of every rank, in order of ranks, on every rank."""
    values: list = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def first_of_ranks(value: T | None) -> T | None:
    """The value of the first rank that has one, on every rank; None if none has. All ranks must call this together."""
    return next((other for other in gathered(value) if other is not None), None)


def require_agreement(what: str, value: str, advice: str) -> None:
    """Stop every rank if one of them has another value.

    Args:
        what: names it in the error, such as "mask".
        value: a hash or fingerprint of it.
        advice: what to do about it, one clause.

    Raises:
        ValueError: on all ranks, so that none continues alone.
    """
    values = gathered(value)
    odd = next((rank for rank, other in enumerate(values) if other != values[0]), None)
    if odd is not None:
        raise ValueError(
            f"rank {odd} has another {what} ({values[odd][:12]}) than rank 0 ({values[0][:12]}): {advice}"
        )


def require_shared_folder(folder: Path) -> None:
    """Stop every rank if one of them does not see what rank 0 writes to `folder`.

    Raises:
        ValueError: on all ranks alike.
    """
    if world_size() == 1:
        return
    token = folder / ".seen-by-all-ranks"
    if is_main():
        token.touch()
    barrier()
    seen = gathered(token.is_file())
    if is_main():
        token.unlink()
    if not all(seen):
        raise ValueError(
            f"rank {seen.index(False)} does not see {folder.absolute()} as rank 0 does: "
            "set training.output_dir to a folder that every node mounts"
        )


def mean_over_ranks(scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Scores that every rank has worked out on its own batches -> their mean, the same on every rank."""
    if world_size() > 1:
        for name in sorted(scores):
            dist.all_reduce(scores[name])
            scores[name].div_(world_size())
    return scores


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, in place. All ranks give tensors of the same shapes, in order."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def full(tensor: Tensor) -> Tensor:
    """The whole value of a parameter or buffer, on every rank. All ranks must call this together if it is sharded."""
    if is_zero(tensor):
        return full_value(tensor)
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_shape(tensor: Tensor) -> torch.Size:
    """The shape of the whole value of a parameter or buffer."""
    return tensor.ds_shape if is_zero3(tensor) else tensor.shape


@torch.no_grad()
def write(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value, which every rank has, into a parameter or buffer in place; each rank writes its own part.

    The parameter keeps its identity, device and dtype. (copy_, never .data = or .to(): with those, on one device, the
    parameter shares memory with the value, and the second rewind is wrong.)
    """
    if is_zero(tensor):
        write_value(tensor, value)
    else:
        local(tensor).copy_(shard_like(value, tensor))


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, in the same memory; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.data


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, for reading alone: a shard, a flat part of ZeRO-3's, or the whole."""
    return tensor.ds_tensor.data if is_zero3(tensor) else local(tensor)


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """The part of a full tensor that belongs to this rank's part of `parameter`, on its device.

    Every rank has the whole value (of one file, mapped into memory), so nothing is sent.
    """
    if isinstance(parameter, DTensor):
        value = distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        return value.to_local()
    return value.to(parameter.device)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, under the names that it had before torch.compile or a checkpoint wrapper changed them."""
    return {_own_name(name): parameter for name, parameter in model.named_parameters()}


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Name -> buffer, under names as in `named_parameters`."""
    return {_own_name(name): buffer for name, buffer in model.named_buffers()}


def not_persistent(model: nn.Module) -> set[str]:
    """Names of the buffers that no checkpoint holds, as in `named_buffers`."""
    return {
        _own_name(f"{path}.{name}" if path else name)
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> live tensor: all parameters (tied ones once) and buffers."""
    return {**named_parameters(model), **named_buffers(model)}


def _own_name(name: str) -> str:
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
