"""How large a recipe's network is, exactly, and the memory that training it takes, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hf_lottery.pruning.targets import LINEAR_MODULES, prunable
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.adapters import refuse_what_a_mask_cannot_be_over, require_places
from hf_lottery.runner.network import refuse_what_does_not_go_together
from hf_lottery.tasks.language_models import model_config

GIB = 1 << 30
_STATES = {"sgd": 0, "rmsprop": 1, "adagrad": 1, "adafactor": 0, "lion": 1}  # moments a weight; Adam and others: 2


@dataclass(frozen=True)
class Size:
    """A network's counts, and the bytes that training it takes, activations and temporary buffers aside.

    Args:
        parameters: of the base model (tied ones once).
        trainable: what an optimizer steps: the adapter's, or the whole model's.
        prunable: what the mask is over.
        weights, gradients, optimizer, masks: bytes.
    """

    parameters: int
    trainable: int
    prunable: int
    weights: int
    gradients: int
    optimizer: int
    masks: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer + self.masks

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.trainable:,} trained, {self.prunable:,} prunable; "
            f"{self.total / GIB:.1f} GiB before activations (weights {self.weights / GIB:.1f}, gradients "
            f"{self.gradients / GIB:.1f}, optimizer {self.optimizer / GIB:.1f}, masks {self.masks / GIB:.1f})"
        )


def network_size(recipe: Recipe, config: PretrainedConfig | None = None) -> Size:
    """The size of a causal_lm recipe's network, counted on the meta device, where no weight is read or allocated.

    Args:
        recipe: its sections model, peft, quantization, lottery and training count.
        config: of the model; None: the one that the recipe names, from its folder or the Hub.

    Raises:
        ValueError: the config cannot be had, or target modules match nothing.
    """
    refuse_what_does_not_go_together(recipe)
    model = base_on_meta(recipe, config)
    parameters = sum(p.numel() for p in model.parameters())
    weights = _weight_bytes(model, recipe)
    if (lora := recipe.lora_config()) is not None:
        refuse_what_a_mask_cannot_be_over(lora)
        require_places(model, lora)
        with torch.device("meta"):
            model = get_peft_model(model, lora)
    lottery = recipe.lottery_config()
    targets = prunable(model, lottery.target_modules, lottery.exclude_modules, lottery.prune_embeddings)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if lora is None and lottery.pruned_value == "init":
        trained = targets
    gradients = sum(p.numel() * p.element_size() for p in trained.values())
    if lora is not None:
        weights += gradients
    arguments = recipe.training_arguments()
    optim = arguments.optim.value
    moments = 0 if "8bit" in optim else next((n for name, n in _STATES.items() if name in optim), 2)
    if optim == "sgd" and "momentum" in str(arguments.optim_args):
        moments = 1
    optimizer = gradients * moments + (2 * sum(p.numel() for p in trained.values()) if "8bit" in optim else 0)
    numel = sum(p.numel() for p in targets.values())
    masks = 2 * numel  # the mask itself, and the bytes that the step masks by
    if lottery.pruned_value == "init":
        masks += sum(p.numel() * p.element_size() for p in targets.values())
    return Size(parameters, sum(p.numel() for p in trained.values()), numel, weights, gradients, optimizer, masks)


def base_on_meta(recipe: Recipe, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """A causal_lm recipe's model without its weights, nor an adapter: names, shapes and dtypes.

    Args:
        recipe: its section model counts.
        config: of the model; None: the one that the recipe names.

    Raises:
        ValueError: the config cannot be had.
    """
    config = config or model_config(recipe.model)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=_dtype(recipe, config))


def require_fits(recipe: Recipe, size: Size, available: int | None = None) -> None:
    """Raise a ValueError, before anything is loaded, if the network alone is larger than the memory there is.

    Args:
        recipe: for its model's name.
        size: of `network_size`.
        available: bytes; None: of this machine's CUDA devices that one process uses, or its RAM.
    """
    available = memory_of_this_machine(recipe) if available is None else available
    if size.total <= available:
        return
    name = recipe.model.name_or_path or recipe.model.architecture
    ways = [
        "set model.dtype=bfloat16" if recipe.model.dtype == "float32" else None,
        "train an adapter (section peft)" if recipe.peft is None else None,
        "load the base in 4 bits (section quantization)"
        if recipe.peft is not None and not recipe.quantization
        else None,
        "take a smaller model or a larger machine",
    ]
    raise ValueError(
        f"{name} does not fit: {size}, and there are {available / GIB:.1f} GiB: {', or '.join(filter(None, ways))}"
    )


def memory_of_this_machine(recipe: Recipe) -> int:
    """Bytes for one process: all CUDA devices where device_map spreads the model, else one; without any, the RAM."""
    if on_cuda(recipe):
        devices = range(torch.cuda.device_count()) if recipe.model.device_map else [torch.cuda.current_device()]
        return sum(torch.cuda.get_device_properties(i).total_memory for i in devices)
    return psutil.virtual_memory().total


def on_cuda(recipe: Recipe) -> bool:
    """Whether training would be on a CUDA device."""
    return torch.cuda.is_available() and not recipe.training.get("use_cpu")


def _dtype(recipe: Recipe, config: PretrainedConfig) -> torch.dtype:
    if recipe.model.dtype in (None, "auto"):
        return config.dtype or torch.float32
    return getattr(torch, recipe.model.dtype)


def _weight_bytes(model: nn.Module, recipe: Recipe) -> int:
    """Of the base model; quantised, linear layers take 4 (or 8) bits and a float of scale per block of 64."""
    quantization = recipe.quantization_config()
    small = set()
    if quantization is not None:
        embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        head = model.get_output_embeddings()
        small = {
            id(m.weight)
            for m in model.modules()
            if isinstance(m, LINEAR_MODULES) and m is not head and id(m.weight) not in embedded
        }
    four = quantization is not None and quantization.load_in_4bit
    scale = 0.127 / 8 if four and quantization.bnb_4bit_use_double_quant else 4 / 64
    total = 0
    for p in model.parameters():
        total += p.numel() * ((0.5 + scale if four else 1) if id(p) in small else p.element_size())
    return int(total)
