"""Wanda: a weight's magnitude times the norm of its input activations, over real tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from hf_lottery.distributed.processes import sum_over_ranks
from hf_lottery.pruning.axes import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, Axes, axes_of, laid_back, laid_out
from hf_lottery.pruning.unpadded import unpadded


def wanda(
    weights: Mapping[str, Tensor], input_norms: Mapping[str, Tensor], axes: Mapping[str, Axes] | None = None
) -> dict[str, Tensor]:
    """|θ_ij| · ‖X_j‖₂: a weight times the norm of its input activations.

    Args:
        weights: of linear layers and convolutions.
        input_norms: name -> (in,), as `input_norms` gives them.
        axes: name -> where a weight has its outputs and inputs; None: all are (out, in, …), without groups.

    Source: Sun et al. 2024 (arXiv 2306.11695), equation 1. It compares within each row; here the scope decides.
    """
    axes = axes or dict.fromkeys(weights, Axes(0, 1))
    scores = {}
    for name, weight in laid_out({name: weight.detach() for name, weight in weights.items()}, axes).items():
        # output o is of group o // (out / groups), whose inputs are as many neighbours
        norms = input_norms[name].to(weight.device).view(axes[name].groups, 1, -1)
        of_weights = norms.expand(-1, len(weight) // len(norms), -1).flatten(0, 1)
        scores[name] = weight.abs() * of_weights.view(*of_weights.shape, *[1] * (weight.dim() - 2))
    return laid_back(scores, axes)


def input_norms(
    model: nn.Module, names: Iterable[str], run: Callable[[Any], Any], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """‖X_j‖₂ of every input feature (or input channel) of some layers, over all examples and positions.

    Padding is left out: every example is run without it, see `unpadded`. With several processes the squares are added
    up over all of them, which call this together, so that each has the norms of all examples. (If each has run all
    examples, as `calibration_batches` lets networks with batch norm do, all norms are √processes as large.)

    Args:
        model: holds the layers.
        names: of weights of linear layers and of convolutions.
        run: sends a batch through the model.
        batches: what `run` is called with, those of this process.

    Returns:
        name -> float32 (in,).

    Raises:
        ValueError: a weight belongs to another kind of layer, no activations reached its layer, or there is padding in
            the inputs of a network with batch norm, or in inputs of which the mask does not say where it is.
    """
    squares, reached, hooks = {}, {}, []
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        feature = feature_dimension(module, name)
        axes = axes_of(model, name)
        size = module.weight.shape[axes.input] * (axes.groups if axes.output == 0 else 1)
        squares[name] = torch.zeros(size, device=module.weight.device)
        reached[name] = torch.zeros(1, device=module.weight.device)

        def add(_, inputs, name=name, feature=feature):
            rows = inputs[0].detach().movedim(feature, -1).flatten(0, -2).float()
            squares[name] += rows.square().sum(0).to(squares[name].device)
            reached[name] += 1

        hooks.append(module.register_forward_pre_hook(add))
    try:
        with torch.no_grad():
            for batch in batches:
                for part in _without_padding(model, batch):
                    run(part)
    finally:
        for hook in hooks:
            hook.remove()
    sum_over_ranks([*reached.values(), *squares.values()])
    for name in squares:
        if not reached[name]:
            raise ValueError(f"no activations reached the layer of '{name}' in any batch: name it in exclude_modules")
    return {name: total.sqrt() for name, total in squares.items()}


def _without_padding(model: nn.Module, batch: Any) -> Iterator[Any]:
    # a config has the field if its network can have a decoder
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    for part in unpadded(batch, encoder_decoder):
        if part is not batch and any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
            raise ValueError(
                f"criterion wanda runs each example without its padding, and a {type(model).__name__} normalises over "
                "the batch, so that an example alone is another one: use batches without padding, or another criterion"
            )
        yield part


def require_layers(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise a ValueError for a weight of a layer that wanda cannot score."""
    for name in weights:
        feature_dimension(model.get_submodule(name.rpartition(".")[0]), name)


def feature_dimension(module: nn.Module, name: str) -> int:
    """The dimension of a layer's input that holds its features, or channels, counted from the last.

    Raises:
        ValueError: the module, whose weight is `name`, is neither linear nor a convolution.
    """
    if isinstance(module, (nn.Linear, Conv1D)):
        return -1
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)):
        return -1 - len(module.kernel_size)
    raise ValueError(
        f"wanda scores the weights of linear layers and of convolutions, and '{name}' belongs to a "
        f"{type(module).__name__}; name it in exclude_modules"
    )
