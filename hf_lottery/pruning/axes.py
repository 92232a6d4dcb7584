"""Axes: which dimension of a layer's weight holds its outputs and which its inputs, for each type of layer.

Patterns and criteria that need to know take weights, scores and masks laid out as (outputs, inputs, …): `laid_out`
brings them into that form, `laid_back` returns them to the parameter's own. A neuron is then a row, N:M lies along
dimension 1, and no other file asks what layer a weight is of. A new type of layer is a line in `_TABLE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_lottery.pruning.reparametrised import module_of, weight_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# layer, the names of its weights, (dimension of the outputs, dimension of the inputs)
_TABLE = (
    (nn.Linear, r"weight", (0, 1)),
    (Conv1D, r"weight", (1, 0)),  # of GPT-2: x @ weight
    (CONVOLUTIONS, r"weight", (0, 1)),
    (TRANSPOSED_CONVOLUTIONS, r"weight", (1, 0)),
    (nn.MultiheadAttention, r"(in_proj|q_proj|k_proj|v_proj)_weight", (0, 1)),
    ((nn.RNNBase, nn.RNNCellBase), r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?", (0, 1)),
)
# PEFT's LoRA of an embedding: A is (rank, tokens) and B (width, rank), both parameters in a dictionary
_OF_EMBEDDING = re.compile(r"(.+\.)?lora_embedding_[AB]\.[^.]+")


@dataclass(frozen=True)
class Axes:
    """Where a weight has its outputs and inputs.

    Args:
        output, input: the dimensions, 0 and 1 or 1 and 0.
        groups: of a convolution. It has groups · inputs channels of input. With inputs first, those of one group are
            neighbours in dimension 0, and dimension 1 holds the outputs of each group.
    """

    output: int
    input: int
    groups: int = 1

    def out_in(self, tensor: Tensor) -> Tensor:
        """(outputs, inputs of one group, …), a view where there is one; its own inverse."""
        if self.output == 0:
            return tensor
        return tensor.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)


def axes_of(model: nn.Module, name: str) -> Axes | None:
    """The axes of the parameter `name`; None if it is of no layer whose axes are known."""
    module, leaf = module_of(model, name), weight_of(name).removesuffix("_orig")  # of an older spectral norm
    if _OF_EMBEDDING.fullmatch(name):
        return Axes(0, 1)
    for types, names, (output, input_) in _TABLE:
        if isinstance(module, types) and re.fullmatch(names, leaf):
            convolution = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS))
            return Axes(output, input_, module.groups if convolution else 1)
    return None


def known_axes(model: nn.Module, names: Iterable[str]) -> dict[str, Axes]:
    """Name -> axes, of the names whose axes are known."""
    found = {name: axes_of(model, name) for name in names}
    return {name: axes for name, axes in found.items() if axes is not None}


def require_axes(model: nn.Module, names: Iterable[str], what: str) -> dict[str, Axes]:
    """Name -> axes.

    Args:
        what: needs them, "pattern neuron", for the message.

    Raises:
        ValueError: those of a name are not known.
    """
    result = {}
    for name in names:
        axes = axes_of(model, name)
        if axes is None:
            raise ValueError(_unknown(model, name, what))
        result[name] = axes
    return result


def laid_out(tensors: Mapping[str, Tensor], axes: Mapping[str, Axes]) -> dict[str, Tensor]:
    """The tensors that `axes` names, as (outputs, inputs, …)."""
    return {name: axes[name].out_in(tensors[name]) for name in axes}


def laid_back(tensors: Mapping[str, Tensor], axes: Mapping[str, Axes]) -> dict[str, Tensor]:
    """What `laid_out` gave, or tensors of that shape, as the parameters are."""
    return {name: axes[name].out_in(tensors[name]).contiguous() for name in axes}


def _unknown(model: nn.Module, name: str, what: str) -> str:
    module, shape = module_of(model, name), tuple(model.get_parameter(name).shape)
    if isinstance(module, nn.Embedding):
        return (
            f"{what} needs outputs and inputs, and '{name}' of shape {shape} is the table of an Embedding, whose rows "
            "are tokens: name it in exclude_modules, and set prune_embeddings: rows to prune tokens of the model's own"
        )
    return (
        f"{what} needs to know which dimension of '{name}', of shape {shape}, holds the outputs, and it is no weight "
        f"of a layer for which this is known, but of a {type(module).__name__}: name it in exclude_modules, or use "
        "pattern weight"
    )
