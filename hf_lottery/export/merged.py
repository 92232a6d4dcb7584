"""A trained network as one plain model: the base model with its adapter merged in, or the trained weights."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hf_lottery.distributed.processes import named_tensors
from hf_lottery.export.source import Source
from hf_lottery.task_records import TASKS
from hf_lottery.tasks.language_models import pretrained_model
from hf_lottery.tasks.tokenizing import load_tokenizer

SPARSE = 0.01  # a base model with a smaller share of exact zeros counts as dense: single weights are 0 by chance


@dataclass
class Zeros:
    """Exact zeros in the weights of the base model into which an adapter is merged.

    Args:
        before: how many there are before the merge.
        kept: how many of them are still zero after it.
        total: how many weights those modules have.
    """

    before: int
    kept: int
    total: int

    def __str__(self) -> str:
        if self.before < SPARSE * self.total:
            return "the base is dense"
        share = f"{self.before:,} of {self.total:,} weights of the merged modules were zero in the base"
        if self.kept == self.before:
            return f"{share}, and still are"
        return f"{share}; the merge fills {self.before - self.kept:,} of them (--keep-zeros leaves them zero)"


def save_merged(source: Source, folder: str | os.PathLike, keep_zeros: bool = False) -> tuple[Path, Zeros | None]:
    """Write a causal language model that loads with transformers alone.

    A quantised base is merged in full precision, as it was before quantisation.

    Args:
        source: what to export.
        folder: is created if it does not exist.
        keep_zeros: keep the zeros of the base model at zero. The result then computes something else, unless the
            adapter was trained so.

    Returns:
        The folder, and the numbers of zeros before and after (None without an adapter).

    Raises:
        ValueError: the task is not causal_lm.
    """
    recipe = source.recipe
    if not TASKS[recipe.data.task].language_model:
        raise ValueError(f"--to merged is for the task causal_lm, not for {recipe.data.task}")
    model, zeros = pretrained_model(recipe.model, recipe.training_arguments().seed), None
    if (lora := recipe.lora_config()) is not None:
        model = get_peft_model(model, lora)
    if source.ticket is None:
        write_into(model, source.tensors)
    else:
        source.ticket.apply_to(model)
    if lora is not None:
        model, zeros = merge(model, keep_zeros)
    model.save_pretrained(folder)
    load_tokenizer(recipe.data.tokenizer, recipe.model).save_pretrained(folder)
    return Path(folder), zeros


@torch.no_grad()
def merge(model: PeftModel, keep_zeros: bool = False) -> tuple[nn.Module, Zeros]:
    """Merge the active adapter into its base, in place; returns the base model and its numbers of zeros.

    Merging fills the zeros of a sparse base model, because ΔW is dense; `keep_zeros` sets them to zero again.

    Raises:
        ValueError: the adapter is on a weight that another module shares.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    was_zero = {id(layer): layer.get_base_layer().weight == 0 for _, layer in layers}
    zeros = Zeros(0, 0, 0)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, layer in layers:
        if uses[id(layer.get_base_layer().weight)] > 1:
            raise ValueError(
                f"'{name}' is tied to another module, which merging would change too: export the adapter, or train "
                "with tie_word_embeddings false in model.config"
            )
    for _, layer in layers:
        layer.merge()
        weight, mask = layer.get_base_layer().weight, was_zero[id(layer)]
        if keep_zeros:
            weight.masked_fill_(mask, 0)
        zeros.before += int(mask.count_nonzero())
        zeros.kept += int((mask & (weight == 0)).count_nonzero())
        zeros.total += weight.numel()
    return model.unload(), zeros


@torch.no_grad()
def write_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy values into a model's parameters and buffers, in place.

    Raises:
        ValueError: a tensor is missing from the model or has another shape.
    """
    state = named_tensors(model)
    for name, value in tensors.items():
        if name not in state or state[name].shape != value.shape:
            raise ValueError(f"the recipe's model has no '{name}' of shape {tuple(value.shape)}: was it changed?")
        state[name].copy_(value)
