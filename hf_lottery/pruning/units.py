"""Units: the weights that a pattern prunes together (a neuron, a head, a rank, a token), exchanged at random.

In a tensor, the units are equal blocks along one dimension, or along each of several equal parts of it. Several
tensors can have parts of the same units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.gated import GatedMLP
from hf_lottery.pruning.heads import Heads
from hf_lottery.pruning.lora import require_lora


@dataclass(frozen=True)
class Units:
    """The units of a layer.

    Args:
        count: how many there are.
        dims: name of a tensor -> the dimension along which it has `count` equal blocks, one for each unit.
        parts: name of a tensor -> how many times it has such blocks, one after the other: 2 for a weight that holds
            gate and up of a gated MLP. 1 for all that are not named.
    """

    count: int
    dims: Mapping[str, int]
    parts: Mapping[str, int] = field(default_factory=dict)


def row_units(mask: Mask) -> list[Units]:
    """Neurons, filters or tokens: the rows of each tensor."""
    return [Units(mask[name].shape[0], {name: 0}) for name in sorted(mask)]


def neuron_units(mask: Mask, mlps: Mapping[str, GatedMLP]) -> list[Units]:
    """Neurons: in a gated MLP with rows of gate and up and a column of down, in all other layers rows."""
    gated = [mlp for mlp in mlps.values() if mask.keys() >= set(mlp.names)]
    inside = {name for mlp in gated for name in mlp.names}
    units = row_units(Mask({name: mask[name] for name in mask if name not in inside}))
    for mlp in gated:
        parts = {name: mask[name].shape[0] // mlp.count for name in mlp.inner}
        units.append(Units(mlp.count, {**dict.fromkeys(mlp.inner, 0), mlp.down: 1}, parts))
    return units


def head_units(heads: Mapping[str, Heads]) -> list[Units]:
    """Attention heads (with grouped queries the key-value heads), each with its part of all four projections."""
    return [
        Units(layer.count, {layer.query: 0, layer.key: 0, layer.value: 0, layer.output: 1}) for layer in heads.values()
    ]


def rank_units(mask: Mask) -> list[Units]:
    """Ranks: row i of a LoRA's A with column i of its B."""
    return [Units(mask[a].shape[0], {a: 0, b: 1}) for a, b in require_lora(mask)]


def shuffle_units(mask: Mask, units: Iterable[Units], generator: torch.Generator) -> Mask:
    """The mask with the units of each layer exchanged at random, every order equally likely.

    Args:
        mask: its tensors without units stay as they are.
        units: of all layers.
        generator: a CPU generator.
    """
    tensors = dict(mask)
    for layer in units:
        order = torch.randperm(layer.count, generator=generator)
        for name, dim in layer.dims.items():
            blocks = tensors[name].unflatten(dim, (layer.parts.get(name, 1), layer.count, -1))
            tensors[name] = blocks.index_select(dim + 1, order.to(blocks.device)).flatten(dim, dim + 2)
    return Mask(tensors)


def shuffle_n_of_m(mask: Mask, m: int, generator: torch.Generator) -> Mask:
    """The mask with the places in each group of `m` weights exchanged at random, every order equally likely.

    Groups are those of `prune_n_of_m`: m consecutive inputs or input channels. A tensor that is kept whole has none.
    """
    return Mask({name: mask[name] if mask[name].all() else _shuffle_groups(mask[name], m, generator) for name in mask})


def _shuffle_groups(kept: Tensor, m: int, generator: torch.Generator) -> Tensor:
    groups = kept.movedim(1, -1).unflatten(-1, (-1, m))
    order = torch.rand(groups.shape, generator=generator).argsort(-1)
    return groups.gather(-1, order.to(kept.device)).flatten(-2).movedim(-1, 1)
