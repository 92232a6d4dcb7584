"""Gated MLPs: which rows and columns of their layers are one neuron.

    out = down(act(gate(x)) ⊙ up(x))

Neuron i is row i of gate, row i of up and column i of down. It computes only if it has all three.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_lottery.mask import Mask

# how transformers' models, and those of the Hub, name (gate, up, down)
_SEPARATE = (
    ("gate_proj", "up_proj", "down_proj"),
    ("wi_0", "wi_1", "wo"),
    ("w1", "w3", "w2"),
    ("proj_up_gate", "proj_up", "proj_down"),
)
# and (gate and up, the one's rows below the other's; down)
_FUSED = (
    ("gate_up_proj", "down_proj"),
    ("Wi", "Wo"),
    ("input_linear", "output_linear"),
    ("weights_in", "weights_out"),
    ("w12", "w3"),
    ("fc1", "fc2"),
    ("fc1.proj", "fc2"),
    ("linear_1", "linear_2"),
    ("proj_up_gate_z", "proj_down"),
)


@dataclass(frozen=True)
class GatedMLP:
    """The layers of one gated MLP.

    Args:
        inner: names of the weights that have neurons in their rows: gate and up, or the one that holds both, the
            neurons of one half below those of the other.
        down: name of the weight that has neurons in its columns.
        count: how many neurons there are.
    """

    inner: tuple[str, ...]
    down: str
    count: int

    @property
    def names(self) -> tuple[str, ...]:
        return *self.inner, self.down

    def parts(self, name: str, weight: Tensor) -> list[Tensor]:
        """The weight `name` as tensors (neurons, weights): two of a weight that holds gate and up, else one."""
        if name == self.down:
            return [weight.t()]
        return list(weight.split(self.count))

    def expand(self, kept: Tensor, name: str, shape: torch.Size) -> Tensor:
        """(neurons,) bools -> bools that broadcast over the weight `name` of this shape."""
        return kept.view(1, -1) if name == self.down else kept.repeat(shape[0] // self.count).view(-1, 1)


def gated_mlps(model: nn.Module) -> dict[str, GatedMLP]:
    """The gated MLPs of a model, found by the names and shapes of their linear layers.

    Returns:
        name of the module -> its layers. A module without these names and shapes is left out, as is one whose layers
        an adapter has replaced.
    """
    linear = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    result = {}
    for prefix, _ in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for *inner, down in (*_SEPARATE, *_FUSED):
            names = [start + name for name in (*inner, down)]
            if not linear.keys() >= set(names):
                continue
            *rows, columns = (linear[name].shape for name in names)
            count = columns[1]
            if all(shape[0] * len(rows) == 2 * count for shape in rows):
                *inner, down = (f"{name}.weight" for name in names)
                result[prefix] = GatedMLP(tuple(inner), down, count)
                break
    return result


def require_whole(
    mlps: Mapping[str, GatedMLP], names: Collection[str], rate: float, rates: Mapping[str, float]
) -> None:
    """Raise a ValueError if only a part of a gated MLP is among the `names` of weights to prune, or rates differ."""
    for mlp in mlps.values():
        missing = [name for name in mlp.names if name not in names]
        if missing and len(missing) < len(mlp.names):
            there = next(name for name in mlp.names if name in names)
            raise ValueError(
                f"pattern neuron prunes a neuron of a gated MLP in all of its layers, and of the weights that are "
                f"pruned '{there}' is one and '{missing[0]}' is not: add it to target_modules, name all of "
                f"{_short(mlp.names)} in exclude_modules, or use pattern weight"
            )
        if not missing and len({rates.get(name, rate) for name in mlp.names}) > 1:
            raise ValueError(
                f"pattern neuron prunes a neuron of a gated MLP in all of its layers, and pruning_rates differ among "
                f"'{mlp.names[0]}', and {_short(mlp.names[1:])}: give them the same rate"
            )


def mlp_sums(scores: Mapping[str, Tensor], mlp: GatedMLP) -> tuple[Tensor, int]:
    """(sum of the scores of each neuron's weights in all layers of the MLP, (neurons,); number of its weights).

    Args:
        scores: name -> score of each layer's weight, 0 where it is pruned.
    """
    device = scores[mlp.down].device
    parts = [part.to(device) for name in mlp.names for part in mlp.parts(name, scores[name])]
    return sum(part.sum(1) for part in parts), sum(part.shape[1] for part in parts)


def living_neurons(alive: Mask, mlp: GatedMLP) -> Tensor:
    """(neurons,): which neurons compute something, that is, have a kept weight in gate, up and down each."""
    device = alive[mlp.down].device
    parts = (part.any(1).to(device) for name in mlp.names for part in mlp.parts(name, alive[name]))
    return torch.stack(list(parts)).all(0)


def _short(names: Iterable[str]) -> str:
    return ", ".join(name.removesuffix(".weight").rpartition(".")[2] for name in names)
