"""The network of a recipe as its training starts: model, quantisation, adapter, and which weights are trained."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from hf_lottery.config import LotteryConfig
from hf_lottery.pruning.targets import prunable
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.adapters import add_adapter
from hf_lottery.task_records import TASKS
from hf_lottery.tasks import TaskData, task_module


def build_network(recipe: Recipe, data: TaskData, seed: int) -> nn.Module:
    """A fresh network: model and adapter drawn under `seed`.

    Raises:
        ValueError: sections that cannot be combined, or a model or adapter that cannot be made.
    """
    lora, quantization = recipe.lora_config(), recipe.quantization_config()
    require_compatible_sections(recipe)
    options = {} if quantization is None else {"quantization_config": quantization}
    model = task_module(recipe.data.task).build_model(recipe.model, data, seed, **options)
    if lora is not None:
        return add_adapter(model, lora, seed)
    if recipe.lottery_config().pruned_value == "init":
        freeze_all_but_targets(model, recipe.lottery_config())
    return model


def require_compatible_sections(recipe: Recipe) -> None:
    """Raise a ValueError for a recipe whose sections are each valid but cannot be combined."""
    if recipe.quantization is None:
        return
    if not TASKS[recipe.data.task].language_model:
        raise ValueError(f"quantization is for the task causal_lm, not for {recipe.data.task}: leave the section out")
    if recipe.peft is None:
        raise ValueError(
            "quantised weights cannot be trained, masked or rewound: add the section peft to train an adapter over "
            "them, or leave the section quantization out"
        )


def freeze_all_but_targets(model: PreTrainedModel, config: LotteryConfig) -> None:
    """Train only the weights that the mask is over, so that the whole update is as sparse as the mask.

    Source: LoTA, Panda et al. 2024 (arXiv 2406.16797): embeddings, norms and the output layer stay frozen.
    """
    targets = prunable(model, config.target_modules, config.exclude_modules, config.prune_embeddings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in targets)
