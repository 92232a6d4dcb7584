"""Shards: what a process must know to select over weights of which it holds only a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # its import takes a second, and a single process does not need it
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Shards:
    """Where this process's parts of the weights are in the whole tensors, and how counts of all parts are added up.

    Every process calls `select` or `prune` with its own parts, under the same names. Only counts are communicated.

    Args:
        shapes: parameter name -> shape of the whole parameter.
        offsets: parameter name -> flat index, in the whole parameter, of the first weight of this process's part.
            A part is consecutive in the flattened parameter, as FSDP2's `Shard(0)` makes it; it may be empty.
        all_reduce: takes an int64 CPU tensor and returns its sum over all processes that hold different parts.
    """

    shapes: Mapping[str, torch.Size]
    offsets: Mapping[str, int]
    all_reduce: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, parameters: Mapping[str, DTensor]) -> Shards:
        """The shards of FSDP2's parameters.

        Args:
            parameters: name -> DTensor, split along dimension 0 over one dimension of its mesh and replicated over the
                others; the same split of the same mesh for all. `to_local()` of each is what `select` gets.

        Raises:
            ValueError: there are no parameters, or one is not split in this way.
        """
        if not parameters:
            raise ValueError("there are no parameters to prune; give at least one DTensor")
        layouts = {name: _sharded_dimension(name, parameter) for name, parameter in parameters.items()}
        first = next(iter(parameters))
        for name, layout in layouts.items():
            if layout != layouts[first]:
                raise ValueError(f"'{name}' is split over other processes than '{first}'; shard both in the same way")
        mesh, dimension = layouts[first]
        group = mesh.get_group(dimension)
        rank, size = mesh.get_local_rank(dimension), mesh.size(dimension)
        offsets = {}
        for name, parameter in parameters.items():
            rows = -(-parameter.shape[0] // size)  # torch.chunk's split: ceil(rows / size), the last ones shorter
            row = min(rank * rows, parameter.shape[0])
            offsets[name] = row * parameter.shape[1:].numel()
        return cls({name: p.shape for name, p in parameters.items()}, offsets, lambda counts: _sum(counts, group))


def _sharded_dimension(name: str, parameter: Tensor) -> tuple:
    """(mesh, the one mesh dimension that splits `parameter`)."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(parameter, DTensor):
        raise ValueError(f"'{name}' is a {type(parameter).__name__}, not a DTensor; a whole tensor needs no Shards")
    split = [index for index, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    # type(), not isinstance: a strided shard is a subclass whose rows are not consecutive in the whole tensor
    if len(split) != 1 or type(parameter.placements[split[0]]) is not Shard or parameter.placements[split[0]].dim != 0:
        raise ValueError(
            f"'{name}' is placed as {parameter.placements}; selection over shards needs one Shard(0), "
            "as `fully_shard` makes by default"
        )
    return parameter.device_mesh, split[0]


def _sum(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
    counts = counts.to(device)
    dist.all_reduce(counts, group=group)
    return counts.cpu()
