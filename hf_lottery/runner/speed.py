"""An estimate of the time of a step of a language model that is not trained here: its matrix products are timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from hf_lottery.pruning.axes import axes_of
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.memory import base_on_meta, on_cuda

LEAST_SECONDS = 0.1  # how long each product is repeated
MOST_ROWS = 16_384  # of a weight; of a larger one (an output layer) only a part of the rows is timed
MOST_TOKENS = 256  # on a CPU, where a larger product has the same speed; a GPU gets the whole batch


@dataclass(frozen=True)
class Speed:
    """The estimated speed of one process.

    Args:
        step: seconds for a step of `tokens` tokens.
        forward: seconds for a token in a pass without gradients.
        tokens: in a step, with every row at data.max_length.
        rate: floating-point operations a second in the products that were timed.
        device, dtype: where and in what they were timed.
    """

    step: float
    forward: float
    tokens: int
    rate: float
    device: str
    dtype: str

    def __str__(self) -> str:
        return (
            f"estimated, not measured: matrix products of the model's own shapes, timed just now ({self.device}, "
            f"{self.dtype}, {self.rate / 1e9:,.0f} GFLOP/s), {self.tokens:,} tokens a step; attention, norms, the "
            "optimizer and unpacking 4-bit weights are not in it"
        )


def estimate_speed(recipe: Recipe, config: PretrainedConfig | None = None) -> Speed:
    """The time of a step of a causal_lm recipe, from the matrix products in it. No weight of the model is read.

    A step takes the time of the forward pass once for the pass itself, once for the gradients of activations, once
    more if activations are recomputed in the backward pass, and once more for the gradients of weights if the base
    model is trained.

    Args:
        recipe: its sections model, data, training and peft are used.
        config: of the model; None: the one that the recipe names.
    """
    model, arguments = base_on_meta(recipe, config), recipe.training_arguments()
    tokens = arguments.train_batch_size * arguments.gradient_accumulation_steps * recipe.data.max_length
    device = torch.device("cuda" if on_cuda(recipe) else "cpu")
    timed = tokens if device.type == "cuda" else min(tokens, MOST_TOKENS)
    computed = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else model.dtype
    seconds, operations, of_shape = 0.0, 0, {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            shape = tuple(axes_of(module, "weight").out_in(module.weight).shape)
            if shape not in of_shape:
                of_shape[shape] = seconds_of_a_product(shape, timed, computed, device)
            seconds += of_shape[shape]
            operations += 2 * timed * module.weight.numel()
    passes = 2 + bool(arguments.activation_checkpointing) + (recipe.peft is None)
    forward = seconds / timed
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    dtype = str(computed).removeprefix("torch.")
    return Speed(passes * forward * tokens, forward, tokens, operations / seconds, name, dtype)


def seconds_of_a_product(shape: tuple[int, int], tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Mean seconds of x [tokens, in] @ weight [out, in].T, repeated for LEAST_SECONDS after a first product."""
    rows = min(shape[0], MOST_ROWS)
    weight = torch.randn(rows, shape[1], device=device, dtype=dtype)
    x = torch.randn(tokens, shape[1], device=device, dtype=dtype)
    nn.functional.linear(x, weight)
    _wait(device)
    repeats, started, passed = 0, time.perf_counter(), 0.0
    while passed < LEAST_SECONDS:
        nn.functional.linear(x, weight)
        _wait(device)
        repeats, passed = repeats + 1, time.perf_counter() - started
    return passed / repeats * shape[0] / rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
