"""Units: the weights that a pattern prunes together (a neuron, a head, a rank, a token), exchanged at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.gated import GatedMLP
from hf_lottery.pruning.lora import require_lora
from hf_lottery.pruning.places import Groups, Place
from hf_lottery.pruning.recurrent import RecurrentLayer


def row_units(mask: Mask) -> list[Groups]:
    """Neurons, filters or tokens: the rows of each tensor."""
    sizes = {name: mask[name].shape[0] for name in sorted(mask)}
    return [Groups({name: Place(0, (size,))}, size) for name, size in sizes.items()]


def neuron_units(mask: Mask, layers: Mapping[str, GatedMLP | RecurrentLayer]) -> list[Groups]:
    """Neurons: those of `layers`, which lie in several tensors, and in all other layers rows.

    Args:
        mask: laid out as (outputs, inputs, …).
    """
    joint = [layer for layer in layers.values() if mask.keys() >= set(layer.names)]
    inside = {name for layer in joint for name in layer.names}
    return row_units(Mask({name: mask[name] for name in mask if name not in inside})) + joint


def rank_units(mask: Mask) -> list[Groups]:
    """Ranks: row i of a LoRA's A with column i of its B."""
    ranks = {(a, b): mask[a].shape[0] for a, b in require_lora(mask)}
    return [Groups({a: Place(0, (r,)), b: Place(1, (r,))}, r) for (a, b), r in ranks.items()]


def shuffle_units(mask: Mask, units: Iterable[Groups], generator: torch.Generator) -> Mask:
    """The mask with the units of each layer exchanged at random, every order equally likely.

    Args:
        mask: its tensors without units stay as they are.
        units: of all layers.
        generator: a CPU generator.
    """
    tensors = dict(mask)
    for layer in units:
        order = torch.randperm(layer.count, generator=generator)
        for name, place in layer.places.items():
            tensors[name] = tensors[name].index_select(place.dim, place.index(order).to(tensors[name].device))
    return Mask(tensors)


def shuffle_n_of_m(mask: Mask, m: int, generator: torch.Generator) -> Mask:
    """The mask with the places in each group of `m` weights exchanged at random, every order equally likely.

    Groups are those of `prune_n_of_m`, and tensors are laid out as there: m consecutive inputs or input channels. A
    tensor that is kept whole has none.
    """
    return Mask({name: mask[name] if mask[name].all() else _shuffle_groups(mask[name], m, generator) for name in mask})


def _shuffle_groups(kept: Tensor, m: int, generator: torch.Generator) -> Tensor:
    groups = kept.movedim(1, -1).unflatten(-1, (-1, m))
    order = torch.rand(groups.shape, generator=generator).argsort(-1)
    return groups.gather(-1, order.to(kept.device)).flatten(-2).movedim(-1, 1)
