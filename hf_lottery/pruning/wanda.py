"""Wanda: a weight's magnitude times the norm of its input activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def wanda(weights: Mapping[str, Tensor], input_norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ_ij| · ‖X_j‖₂: a weight times the norm of its input activations.

    Args:
        weights: of linear layers, (out, in), and convolutions, (out, in, …).
        input_norms: name -> (in,), as `input_norms` gives them.

    Source: Sun et al. 2024 (arXiv 2306.11695), equation 1. It compares within each row; here the scope decides.
    """
    return {
        name: weight.detach().abs() * input_norms[name].to(weight.device).view(1, -1, *[1] * (weight.dim() - 2))
        for name, weight in weights.items()
    }


def input_norms(
    model: nn.Module, names: Iterable[str], run: Callable[[Any], Any], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """‖X_j‖₂ of every input feature (or input channel) of some layers, over all examples and positions.

    Args:
        model: holds the layers.
        names: of weights of `nn.Linear` and of convolutions without groups.
        run: sends a batch through the model.
        batches: what `run` is called with.

    Returns:
        name -> float32 (in,).

    Raises:
        ValueError: a weight belongs to another kind of layer, or no activations reached its layer.
    """
    names = list(names)
    squares, hooks = {}, []
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        feature = feature_dimension(module, name)

        def add(_, inputs, name=name, feature=feature):
            rows = inputs[0].detach().movedim(feature, -1).flatten(0, -2).float()
            squares[name] = squares.get(name, 0) + rows.square().sum(0)

        hooks.append(module.register_forward_pre_hook(add))
    try:
        with torch.no_grad():
            for batch in batches:
                run(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if name not in squares:
            raise ValueError(f"no activations reached the layer of '{name}': give at least one batch that runs it")
    return {name: total.sqrt() for name, total in squares.items()}


def require_layers(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise a ValueError for a weight of a layer that wanda cannot score."""
    for name in weights:
        feature_dimension(model.get_submodule(name.rpartition(".")[0]), name)


def feature_dimension(module: nn.Module, name: str) -> int:
    """The dimension of a layer's input that holds its features, or channels.

    Raises:
        ValueError: the module, whose weight is `name`, is neither linear nor a convolution without groups.
    """
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1:
        return 1
    raise ValueError(
        f"wanda scores the weights of linear layers and of convolutions without groups, and '{name}' belongs "
        f"to a {type(module).__name__}; name it in exclude_modules"
    )
