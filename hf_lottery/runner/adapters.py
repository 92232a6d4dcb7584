"""Adding a LoRA to the model that tickets are searched in: which ones work under a mask, and which are refused."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, set_seed

from hf_lottery.pruning.targets import require_matches

# These do not change the base model's weights, and start with ΔW = 0 (False does not; tests use it).
INITS = (True, False, "gaussian", "orthogonal")


def add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """`model` with a LoRA drawn under `seed`; its own weights are frozen from now on.

    DoRA, rsLoRA and modules_to_save work: A and B are masked (others only if target_modules names them), the magnitude
    vector and the saved modules are trained densely and rewound together with A and B.

    Args:
        model: the base model, in full precision or quantised.
        config: PEFT's.
        seed: of A's random values.

    Raises:
        ValueError: the model has no such modules, or the adapter cannot be masked.
    """
    refuse_unsupported_adapter(config)
    require_modules(model, config)
    set_seed(seed)
    return get_peft_model(model, config)


def require_modules(model: nn.Module, config: LoraConfig) -> None:
    """Raise a ValueError for a name in `target_modules` or `modules_to_save` that the base model does not have.

    PEFT suggests no similar name, and does not report one wrong name among several, nor a wrong module to save.
    """
    names = [name for name, _ in model.named_parameters()]
    # named_parameters gives one name alone for a tied weight
    names += [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for key in ("target_modules", "modules_to_save"):
        patterns = getattr(config, key)
        if patterns is not None and patterns != "all-linear":
            require_matches(f"peft.{key}", patterns if isinstance(patterns, str) else sorted(patterns), names)


def refuse_unsupported_adapter(config: LoraConfig) -> None:
    """Raise a ValueError for a LoRA that also changes the base model, or has parts that a mask does not support."""
    if config.init_lora_weights not in INITS:
        raise ValueError(
            f"peft.init_lora_weights is {config.init_lora_weights!r}, which changes the base model's weights or needs "
            "data to draw from: a rewound adapter would not fit them; use true, gaussian or orthogonal"
        )
    if config.bias != "none":
        raise ValueError(
            f"peft.bias is {config.bias!r}, which trains the base model's own biases: an exported adapter would not "
            "hold them; use none"
        )
    for name in ("layer_replication", "trainable_token_indices", "target_parameters", "lora_bias"):
        if getattr(config, name, None):
            raise ValueError(f"peft.{name} is not supported under a mask: leave it out")
