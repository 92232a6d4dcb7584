"""New random weights for a network, drawn as its first ones were: by model_init, from its config, or by PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.trainer_utils import number_of_arguments

from hf_lottery.distributed.processes import full_shape
from hf_lottery.random_state import random_state_kept
from hf_lottery.ticket.rewind_point import RewindPoint

Factory = Callable[..., nn.Module]


def redraw(
    model: nn.Module, seed: int, model_init: Factory | None = None, random: Iterable[str] | None = None
) -> RewindPoint:
    """New random weights for `model`, drawn under `seed` from the distribution that its first weights came from.

    With `model_init` they are drawn by it. Without, a PreTrainedModel is made again from its config, so a pretrained
    one gets the random weights of an untrained network; and in a PEFT model LoRA's adapters are drawn again. How
    another module was initialised cannot be known from the module, so that it needs `model_init`. Frozen weights stay
    as they are. The model and the random-number state do not change.

    Args:
        model: whole, in any state of training.
        seed: of all random draws.
        model_init: makes such a model, as Trainer takes it: a function without arguments, or of one, the trial. If it
            loads the weights of a PreTrainedModel, so that the seed changes nothing, the config is used instead.
        random: names of the weights that the seed must change; None: all trained weights of two dimensions or more.

    Returns:
        The trained parameters and all buffers.

    Raises:
        ValueError: there is no way to draw the model again, or not all of it.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    random = [name for name, p in trained.items() if p.dim() > 1] if random is None else list(random)
    with random_state_kept():
        drawn = None if model_init is None else _from_factory(model, model_init, seed, random)
        if drawn is None:
            set_seed(seed)
            drawn = _from_class(model)
    wanted = trained | dict(model.named_buffers())
    for name, value in wanted.items():
        if name not in drawn or drawn[name].shape != full_shape(value):
            raise ValueError(
                f"this {type(model).__name__} was changed after it was made: made again, it has no '{name}' of shape "
                f"{tuple(full_shape(value))}, so it cannot be drawn again: give the trainer a model_init that makes it"
            )
    return RewindPoint(0, {name: drawn[name] for name in wanted})


def _from_factory(model: nn.Module, model_init: Factory, seed: int, random: list[str]) -> dict[str, Tensor] | None:
    """What `model_init` draws under `seed`; None for a model with a config or adapter, if the seed changes nothing."""
    drawn, other = _make(model_init, seed), _make(model_init, seed + 1)
    fixed = [name for name in random if name in drawn and name in other and _same_numbers(drawn[name], other[name])]
    if not fixed:
        return drawn
    if isinstance(model, (PreTrainedModel, PeftModel)):
        return None
    raise ValueError(
        f"model_init makes the same '{fixed[0]}' under every seed, so it cannot be drawn again: let model_init draw "
        "it from torch's random numbers, without a seed of its own and without loading weights, or leave "
        "random_reinit and signed_reinit out"
    )


def _make(model_init: Factory, seed: int) -> dict[str, Tensor]:
    set_seed(seed)
    made = model_init(None) if number_of_arguments(model_init) == 1 else model_init()
    return _all(made)


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two draws are equal, and not just one constant, such as zeros, everywhere."""
    return torch.equal(one, other) and bool((one != one.flatten()[:1]).any())


def _from_class(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, PeftModel):
        return _redraw_adapters(model)
    if isinstance(model, PreTrainedModel):
        try:
            made = type(model)(copy.deepcopy(model.config))
        except TypeError as error:
            raise ValueError(
                f"a {type(model).__name__} cannot be made from its config alone ({error}): give the trainer a "
                "model_init that makes it"
            ) from error
        return _all(made)
    raise ValueError(
        f"a {type(model).__name__} cannot be drawn again, since it does not say how its first weights were drawn: "
        "give the trainer a model_init, a function that makes it, instead of the model; or leave random_reinit and "
        "signed_reinit out"
    )


def _all(model: nn.Module) -> dict[str, Tensor]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _redraw_adapters(model: PeftModel) -> dict[str, Tensor]:
    before = RewindPoint.capture(model)
    try:
        for name, module in model.named_modules():
            if isinstance(module, BaseTunerLayer):
                for adapter in module.active_adapters:
                    _redraw_adapter(name, module, adapter, model.peft_config[adapter])
        return RewindPoint.capture(model).tensors
    finally:
        before.restore(model)


def _redraw_adapter(name: str, module: BaseTunerLayer, adapter: str, config: PeftConfig) -> None:
    """Draw A and B of one layer again, as PEFT's `update_layer` draws them."""
    if not isinstance(module, LoraLayer):
        raise ValueError(
            f"'{name}' has an adapter that is no LoRA, which cannot be drawn again: give the trainer a model_init "
            "that makes the model with its adapter"
        )
    init = config.init_lora_weights
    if init in (False, "orthogonal") and module.use_dora[adapter]:
        raise ValueError(
            f"DoRA's magnitudes in '{name}' depend on A and B where init_lora_weights is {init!r}: set it to true, or "
            "give the trainer a model_init that makes the model with its adapter"
        )
    if init == "orthogonal":
        a, b = module.lora_A[adapter], module.lora_B[adapter]
        old = a.weight, b.weight
        module.orthogonal_init(adapter)  # puts new parameters into the layers
        with torch.no_grad():
            for layer, weight in zip((a, b), old, strict=True):
                weight.copy_(layer.weight)
                layer.weight = weight
    elif init is False:
        for layers in (module.lora_A, module.lora_B):
            if adapter in layers:
                layers[adapter].reset_parameters()
        for weights in (module.lora_embedding_A, module.lora_embedding_B):
            if adapter in weights:
                nn.init.normal_(weights[adapter])
    else:
        module.reset_lora_parameters(adapter, init)
