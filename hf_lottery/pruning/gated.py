"""Gated MLPs: which rows and columns of their layers are one neuron.

    out = down(act(gate(x)) ⊙ up(x))

Neuron i is row i of gate, row i of up and column i of down. It computes only if it has all three.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn

from hf_lottery.mask import Mask
from hf_lottery.pruning.places import Groups, Place
from hf_lottery.pruning.recurrent import RecurrentLayer

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


class GatedMLP(Groups):
    """The neurons of one gated MLP: in the outputs of gate and up, or of the one layer that holds both, the neurons of
    one half below those of the other, and last in the inputs of down."""

    what = "a gated MLP"

    def living(self, alive: Mask) -> Tensor:
        """(neurons,): which neurons compute something, that is, have a kept weight in gate, up and down each."""
        return self.living_parts(alive).all(0)


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
                places = {name: Place(0, (count,) * (2 // len(inner))) for name in inner}
                result[prefix] = GatedMLP({**places, down: Place(1, (count,))}, count)
                break
    return result


def require_whole(
    layers: Mapping[str, GatedMLP | RecurrentLayer], names: Collection[str], rate: float, rates: Mapping[str, float]
) -> None:
    """Raise a ValueError if only a part of a layer is among the `names` of weights to prune, or rates differ."""
    for layer in layers.values():
        missing = [name for name in layer.names if name not in names]
        if missing and len(missing) < len(layer.names):
            there = next(name for name in layer.names if name in names)
            raise ValueError(
                f"pattern neuron prunes a neuron of {layer.what} in all of its weights, and of the weights that are "
                f"pruned '{there}' is one and '{missing[0]}' is not: add it to target_modules, name all of "
                f"{_short(layer.names)} in exclude_modules, or use pattern weight"
            )
        if not missing and len({rates.get(name, rate) for name in layer.names}) > 1:
            raise ValueError(
                f"pattern neuron prunes a neuron of {layer.what} in all of its weights, and pruning_rates differ "
                f"among '{layer.names[0]}', and {_short(layer.names[1:])}: give them the same rate"
            )


def _short(names: Iterable[str]) -> str:
    return ", ".join(name.removesuffix(".weight").rpartition(".")[2] for name in names)
