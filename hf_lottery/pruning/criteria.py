"""What a weight is worth: pure functions from weights, and what else a criterion needs, to scores. The lowest go.

Each function's arguments say what it needs, under the same names throughout:

    weights      name -> parameter. All but `large_init` take the weights that are to be judged.
    initial      name -> the same parameter's value at the rewind point, θ_k.
    generator    a seeded CPU generator.
    loss         a function of (batch, temperature): the batch's mean loss, a scalar that backward can run from, of the
                 logits divided by `temperature`.
    batches      what `loss` is called with, one after another.
    input_norms  name -> norms of what flows into the weight's layer; `input_norms` makes them.
    model, inputs, alive, rate, …  of `synflow`, which prunes as it scores.

Scores have the parameter's shape and lie on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_lottery.pruning.lora import lora_product
from hf_lottery.pruning.synflow import synflow

Loss = Callable[[Any, float], Tensor]


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ|, from the weights alone.

    `select(weights, alive, count, key=torch.abs)` selects the same without the copy that this makes.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635); "large_final" in Zhou et al. 2019 (arXiv 1905.01067).
    """
    return {name: weight.detach().abs() for name, weight in weights.items()}


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform numbers in [0, 1), from the shapes of the weights alone.

    Args:
        weights: only names, shapes and devices are used.
        generator: numbers are drawn in order of names, so a seed names one result on every device.
    """
    drawn = {name: torch.rand(weights[name].shape, generator=generator) for name in sorted(weights)}
    return {name: drawn[name].to(weight.device) for name, weight in weights.items()}


def large_init(initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ_k|, from the rewind point alone.

    Source: Zhou et al. 2019 (arXiv 1905.01067), "large_init".
    """
    return magnitude(initial)


def magnitude_increase(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ| − |θ_k|, from the trained weights and the rewind point.

    Source: Zhou et al. 2019 (arXiv 1905.01067), "magnitude_increase".
    """
    return {name: weight.detach().abs() - _beside(weight, initial, name).abs() for name, weight in weights.items()}


def movement(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ − θ_k|, from the trained weights and the rewind point.

    Source: Zhou et al. 2019 (arXiv 1905.01067), "movement"; LoTA's task vector (Panda et al. 2024, arXiv 2406.16797).
    """
    return {name: (weight.detach() - _beside(weight, initial, name)).abs() for name, weight in weights.items()}


def snip(weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any]) -> dict[str, Tensor]:
    """|∂L/∂m| = |θ ⊙ ∂L/∂θ| at m = 1: how much the loss feels a weight's removal. Needs a loss and a batch.

    The loss is summed over batches; its authors take about 10 examples of every class. A weight that the loss does not
    reach scores 0.

    Raises:
        ValueError: there is no batch.

    Source: Lee, Ajanthan & Torr 2019 (arXiv 1810.02340), equation 5, without the normalisation that changes no order.
    """
    gradients = _gradients(weights, loss, batches, temperature=1.0)
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()}


def grasp(
    weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any], temperature: float = 200.0
) -> dict[str, Tensor]:
    """θ ⊙ Hg, with the loss's gradient g and Hessian H: what a weight does for the flow of gradients.

    Needs a loss and a batch.

    Args:
        batches: gone through twice, so a list; g is summed over all of them.
        temperature: T, by which the logits are divided.

    Raises:
        ValueError: there is no batch.

    Source: Wang, Zhang & Grosse 2020 (arXiv 2002.07376), Algorithm 2: weights with the largest −θ ⊙ Hg go.
    """
    batches = list(batches)
    stopped = _gradients(weights, loss, batches, temperature)
    scores = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    parameters = list(weights.values())
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel that can be differentiated twice
        for batch in batches:
            gradients = torch.autograd.grad(
                loss(batch, temperature), parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
            flow = sum((g * stopped[name]).sum() for name, g in zip(weights, gradients, strict=True))
            hessian_times_g = torch.autograd.grad(flow, parameters, allow_unused=True, materialize_grads=True)
            for (name, weight), h in zip(weights.items(), hessian_times_g, strict=True):
                scores[name] += weight.detach() * h
    return scores


def wanda(weights: Mapping[str, Tensor], input_norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ_ij| · ‖X_j‖₂: a weight times the norm of what flows into it. Needs activations.

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


def feature_dimension(module: nn.Module, name: str) -> int:
    """Along which dimension of its input a layer's features, or channels, lie.

    Raises:
        ValueError: the module, whose weight is `name`, is neither linear nor a convolution without groups.
    """
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1:
        return 1
    raise ValueError(
        f"wanda judges the weights of linear layers and of convolutions without groups, and '{name}' belongs "
        f"to a {type(module).__name__}; name it in exclude_modules"
    )


CRITERIA: dict[str, Callable[..., dict[str, Tensor]]] = {
    "magnitude": magnitude,
    "random": random,
    "large_init": large_init,
    "magnitude_increase": magnitude_increase,
    "movement": movement,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "wanda": wanda,
    "lora_product": lora_product,
}


def _beside(weight: Tensor, initial: Mapping[str, Tensor], name: str) -> Tensor:
    """θ_k's value for a weight, where the weight is."""
    if name not in initial:
        raise ValueError(f"the rewind point holds no '{name}'; capture it from the model whose weights are judged")
    return initial[name].detach().to(weight.device, weight.dtype)


def _gradients(weights: Mapping[str, Tensor], loss: Loss, batches: Iterable[Any], temperature: float):
    """name -> ∂L/∂θ, summed over batches; zeros where the loss does not reach."""
    total = None
    for batch in batches:
        gradients = torch.autograd.grad(
            loss(batch, temperature), list(weights.values()), allow_unused=True, materialize_grads=True
        )
        total = gradients if total is None else [old + new for old, new in zip(total, gradients, strict=True)]
    if total is None:
        raise ValueError("this criterion judges weights by a loss, and there is no batch to take it from")
    return dict(zip(weights, total, strict=True))
