"""The exact size of a recipe's network, and the memory that training it takes, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from hf_lottery.config import LotteryConfig
from hf_lottery.models.on_meta import build_on_meta
from hf_lottery.pruning.coverage import Coverage, coverage
from hf_lottery.pruning.step import check_network
from hf_lottery.pruning.targets import match_rates, prunable
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.adapters import refuse_unsupported_adapter, require_modules
from hf_lottery.runner.network import require_compatible_sections
from hf_lottery.task_records import TASKS
from hf_lottery.tasks.building import require_model_of_task
from hf_lottery.tasks.language_models import model_config

GIB = 1 << 30
_MOMENTS = {"sgd": 0, "rmsprop": 1, "adagrad": 1, "adafactor": 0, "lion": 1}  # a weight; Adam and others have 2


@dataclass(frozen=True)
class Size:
    """A network's counts, and the bytes that training it takes, without activations and temporary buffers.

    Args:
        parameters: of the base model (tied ones once).
        trainable: the weights that an optimizer steps: the adapter's, or the whole model's.
        prunable: the weights that the mask is over.
        weights, gradients, optimizer, masks: bytes.
        coverage: what the mask is over, and what it leaves out.
    """

    parameters: int
    trainable: int
    prunable: int
    weights: int
    gradients: int
    optimizer: int
    masks: int
    coverage: Coverage

    @property
    def total(self) -> int:
        """Bytes, added up."""
        return self.weights + self.gradients + self.optimizer + self.masks

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.trainable:,} trained, {self.prunable:,} prunable; "
            f"{self.total / GIB:.1f} GiB before activations (weights {self.weights / GIB:.1f}, gradients "
            f"{self.gradients / GIB:.1f}, optimizer {self.optimizer / GIB:.1f}, masks {self.masks / GIB:.1f})"
        )


def require_memory(recipe: Recipe) -> None:
    """Refuse a model that is larger than the memory there is, before anything is allocated.

    Checked are language models, random weights of an architecture, and models whose config the recipe changes. The
    config's own vocabulary and number of classes are counted: those of the data are not known yet.

    Raises:
        ValueError: it is larger; the message says by how much.
    """
    if recipe.model.architecture is not None or recipe.model.config or TASKS[recipe.data.task].language_model:
        require_fits(recipe, network_size(recipe))


def network_size(recipe: Recipe, config: PretrainedConfig | None = None) -> Size:
    """The size of a recipe's network, counted on the meta device, where no weight is read or allocated.

    Args:
        recipe: its sections model, peft, quantization, lottery and training are used.
        config: of the model; None: the one that the recipe names, from its folder or the Hub.

    Raises:
        ValueError: the config cannot be found, or the settings of section lottery do not fit the network.
    """
    require_compatible_sections(recipe)
    lora, lottery = recipe.lora_config(), recipe.lottery_config()
    base = base_on_meta(recipe, config)
    parameters, weights = _numel(base.parameters()), _weight_bytes(base, recipe.quantization_config())
    model = base if lora is None else _with_adapter(base, lora)
    targets = prunable(model, lottery.target_modules, lottery.exclude_modules, lottery.prune_embeddings)
    rates = match_rates(lottery.pruning_rates, targets, others=[name for name, _ in model.named_parameters()])
    check_network(model, lottery, targets, rates)
    if lora is None and lottery.pruned_value == "init":
        trained = list(targets.values())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in targets)
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
    return Size(
        parameters=parameters,
        trainable=_numel(trained),
        prunable=_numel(targets.values()),
        weights=weights + (_bytes(trained) if lora is not None else 0),
        gradients=_bytes(trained),
        optimizer=_optimizer_bytes(recipe.training, trained),
        masks=_mask_bytes(targets.values(), lottery),
        coverage=coverage(model, targets, lottery.target_modules, lottery.exclude_modules),
    )


def base_on_meta(recipe: Recipe, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """A recipe's model without its weights and without an adapter: names, shapes and dtypes.

    Args:
        recipe: its section model is used.
        config: of the model; None: the one that the recipe names.

    Raises:
        ValueError: the config cannot be found.
    """
    config = config or model_config(recipe.model)
    name = recipe.model.name_or_path or recipe.model.architecture
    require_model_of_task(recipe.data.task, config)
    auto_class = TASKS[recipe.data.task].auto()
    return build_on_meta(
        lambda: auto_class.from_config(config, dtype=_dtype(recipe, config), trust_remote_code=False), name
    )


def require_fits(recipe: Recipe, size: Size, available: int | None = None) -> None:
    """Raise a ValueError, before anything is loaded, if the network alone is larger than the memory there is.

    Args:
        recipe: for its model's name.
        size: of `network_size`.
        available: bytes; None: the memory of the CUDA devices that one process uses, or the RAM.
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
    """Bytes for one process: of all CUDA devices if device_map is set, else of one; without CUDA, the RAM."""
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


def _with_adapter(base: PreTrainedModel, config: LoraConfig) -> PeftModel:
    refuse_unsupported_adapter(config)
    require_modules(base, config)
    return build_on_meta(lambda: get_peft_model(base, config), "the adapter of section peft")


def _weight_bytes(model: PreTrainedModel, quantization: BitsAndBytesConfig | None) -> int:
    """The bytes of the base model. Quantised linear layers take 4 (or 8) bits and a float of scale per block of 64."""
    quantised = set() if quantization is None else _quantised(model)
    four = quantization is not None and quantization.load_in_4bit
    scale = 0.127 / 8 if four and quantization.bnb_4bit_use_double_quant else 4 / 64
    size = 0.5 + scale if four else 1
    return int(sum(p.numel() * (size if id(p) in quantised else p.element_size()) for p in model.parameters()))


def _quantised(model: PreTrainedModel) -> set[int]:
    """The ids of the weights that bitsandbytes quantises: linear layers, but not the output layer or a tied one."""
    kept = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if (head := model.get_output_embeddings()) is not None:
        kept.add(id(head.weight))
    return {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, Conv1D))} - kept


def _optimizer_bytes(training: Mapping[str, Any], trained: Iterable[Tensor]) -> int:
    """The optimizer's moments: each as large as the weights, or in 8 bits one byte per weight.

    Args:
        training: the recipe's section. (A TrainingArguments would reset the state of trainers that are there.)
        trained: the tensors that the optimizer changes.
    """
    name = str(training.get("optim") or "adamw_torch")
    if "8bit" in name:
        return 2 * _numel(trained)
    if name == "sgd" and "momentum" in str(training.get("optim_args")):
        return _bytes(trained)
    return _bytes(trained) * next((count for part, count in _MOMENTS.items() if part in name), 2)


def _mask_bytes(targets: Iterable[Tensor], config: LotteryConfig) -> int:
    """The mask and its copy in the training step, one byte per weight each; and θ_k, if pruned weights stay there."""
    return 2 * _numel(targets) + (_bytes(targets) if config.pruned_value == "init" else 0)


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
