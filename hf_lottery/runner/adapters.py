"""Putting a LoRA on a model that tickets are searched on: what works under a mask, and what is refused."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, set_seed

from hf_lottery.pruning.targets import require_matches

# These leave the base model's weights as they are, and start with ΔW = 0 (False, for tests, does not).
INITS = (True, False, "gaussian", "orthogonal")


def add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """`model` with a LoRA drawn under `seed`; its own weights are frozen from now on.

    DoRA, rsLoRA and modules_to_save work: masks are over A and B (ask for others by name), and the magnitude vector
    and the saved modules are trained densely and rewound with them.

    Args:
        model: the base model, in full precision or quantised.
        config: PEFT's.
        seed: of A's random values.

    Raises:
        ValueError: target modules that are not there, or an adapter that a mask cannot be over.
    """
    refuse_what_a_mask_cannot_be_over(config)
    require_places(model, config)
    set_seed(seed)
    return get_peft_model(model, config)


def require_places(model: nn.Module, config: LoraConfig) -> None:
    """Raise a ValueError for a name in `target_modules` or `modules_to_save` that is none in the base model.

    PEFT itself names no near one, and says nothing of one among several or of a module to save that is not there.
    """
    names = [name for name, _ in model.named_parameters()]
    names += [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]  # tied ones
    for key in ("target_modules", "modules_to_save"):
        patterns = getattr(config, key)
        if patterns is not None and patterns != "all-linear":
            require_matches(f"peft.{key}", patterns if isinstance(patterns, str) else sorted(patterns), names)


def refuse_what_a_mask_cannot_be_over(config: LoraConfig) -> None:
    """Raise a ValueError for a LoRA whose masked entries would not be a subnetwork of the adapter alone."""
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
