"""Places: which weights of one or several tensors are pruned together, as one neuron, head, rank or token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a tensor has its part of each group.

    Args:
        dim: the dimension along which the groups lie.
        sections: sizes of the sections of this dimension, one after the other, each of which is divided equally among
            all groups: (64, 64, 64) of a weight that holds queries, then keys, then values.
        shared: how many entries of the dimension come after the sections and are of no group, because all use them.
    """

    dim: int
    sections: tuple[int, ...]
    shared: int = 0

    def parts(self, tensor: Tensor, count: int) -> list[Tensor]:
        """One (count, weights) for each section: a row is a group."""
        *sections, _ = tensor.movedim(self.dim, 0).split((*self.sections, self.shared))
        return [section.unflatten(0, (count, -1)).flatten(1) for section in sections]

    def expand(self, kept: Tensor, dims: int) -> Tensor:
        """(count,) bools -> bools that broadcast over the tensor of `dims` dimensions."""
        of_groups = [kept.repeat_interleave(size // len(kept)) for size in self.sections]
        along = torch.cat([*of_groups, kept.new_ones(self.shared)])
        return along.view([-1 if dim == self.dim else 1 for dim in range(dims)])

    def index(self, order: Tensor) -> Tensor:
        """Indices into the dimension that put group `order[i]` where group i is."""
        found, start = [], 0
        for size in self.sections:
            found.append(start + torch.arange(size).view(len(order), -1)[order].flatten())
            start += size
        return torch.cat([*found, torch.arange(start, start + self.shared)])


@dataclass(frozen=True)
class Groups:
    """The groups of a layer.

    Args:
        places: name of each tensor that has a part of every group -> where. Tensors of two dimensions or more, laid
            out as the functions that use these groups say.
        count: how many groups there are.
    """

    places: Mapping[str, Place]
    count: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.places)

    def parts(self, name: str, tensor: Tensor) -> list[Tensor]:
        """The tensor `name` as one (groups, weights) for each of its sections."""
        return self.places[name].parts(tensor, self.count)

    def expand(self, kept: Tensor, name: str, shape: torch.Size) -> Tensor:
        """(groups,) bools -> bools that broadcast over the tensor `name` of this shape."""
        return self.places[name].expand(kept, len(shape))

    def sums(self, scores: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """(sum of the scores of each group's weights in all tensors, (groups,); number of its weights).

        Args:
            scores: name -> score of each tensor, 0 where it is pruned.
        """
        parts = self._all_parts(scores)
        return sum(part.sum(1) for part in parts), sum(part.shape[1] for part in parts)

    def living_parts(self, alive: Mapping[str, Tensor]) -> Tensor:
        """(parts, groups): in which of its parts a group has a kept weight."""
        return torch.stack([part.any(1) for part in self._all_parts(alive)])

    def _all_parts(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        device = tensors[self.names[-1]].device
        return [part.to(device) for name in self.names for part in self.parts(name, tensors[name])]
