"""Criteria: functions from weights to scores; the weights with the lowest scores are pruned.

A new criterion is one function here (or in a file of its own) with a line in `CRITERIA`, and its name in
`hf_lottery.config.CRITERIA`. The functions take, under the same names throughout:

    weights    name -> parameter, those that are scored.
    initial    name -> the same parameter's value at the rewind point, θ_k.
    generator  a seeded CPU generator.

Scores have the parameter's shape and are on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hf_lottery.pruning.axes import known_axes
from hf_lottery.pruning.context import PruningContext
from hf_lottery.pruning.custom import call_custom
from hf_lottery.pruning.gradients import grasp, snip, tempered_loss
from hf_lottery.pruning.labels import counted_labels
from hf_lottery.pruning.lora import lora_product, require_lora
from hf_lottery.pruning.synflow import one_example_of_ones, require_inputs_embeds, synaptic_flow, synflow
from hf_lottery.pruning.wanda import input_norms, require_layers, wanda

# what a criterion needs besides the weights
INITIAL = "initial"  # θ_k, of `context.initial()`
DATA = "data"  # `context.batches()`, run through the model


@dataclass(frozen=True)
class Criterion:
    """How weights are scored.

    Args:
        function: (weights, context) -> scores, name -> tensor.
        needs: INITIAL, DATA or None.
        key: elementwise function that turns what `function` returns into scores, chunk by chunk, where that
            saves a copy of all weights; None: `function` returns the scores.
        check: (model, weights) -> None; raises a ValueError for a network that the criterion cannot score.
        trial: a cheaper function, for finding out whether `function` can score a network; None: `function` itself.
    """

    function: Callable[[Mapping[str, Tensor], PruningContext], Mapping[str, Tensor]]
    needs: str | None = None
    key: Callable[[Tensor], Tensor] | None = None
    check: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None
    trial: Callable[[Mapping[str, Tensor], PruningContext], object] | None = None

    def rehearse(self, weights: Mapping[str, Tensor], context: PruningContext) -> None:
        """Score once, with what `context` has, and forget the scores; raises what `function` would raise."""
        (self.trial or self.function)(weights, context)


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
        generator: numbers are drawn in order of names, so one seed gives the same scores on every device.
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
    return {
        name: weight.detach().abs() - _initial_value(weight, initial, name).abs() for name, weight in weights.items()
    }


def movement(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ − θ_k|, from the trained weights and the rewind point.

    Source: Zhou et al. 2019 (arXiv 1905.01067), "movement"; LoTA's task vector (Panda et al. 2024, arXiv 2406.16797).
    """
    return {name: (weight.detach() - _initial_value(weight, initial, name)).abs() for name, weight in weights.items()}


def _scored_by_random(weights: Mapping[str, Tensor], context: PruningContext) -> dict[str, Tensor]:
    return random(weights, torch.Generator().manual_seed(context.seed))


def _scored_by_large_init(weights: Mapping[str, Tensor], context: PruningContext) -> dict[str, Tensor]:
    initial = context.initial()
    return large_init({name: initial[name] for name in weights})


def _scored_by_snip(weights: Mapping[str, Tensor], context: PruningContext) -> dict[str, Tensor]:
    return snip(weights, context.loss, context.batches(), counted_labels(context.model))


def _scored_by_grasp(weights: Mapping[str, Tensor], context: PruningContext) -> dict[str, Tensor]:
    return grasp(weights, tempered_loss(context.model), context.batches(), counted_labels(context.model))


def _scored_by_synflow(weights: Mapping[str, Tensor], context: PruningContext) -> dict[str, Tensor]:
    ones = one_example_of_ones(context.model, context.batches()[0])
    return synflow(weights, context.model, ones, context.mask, **context.amount)


def _tried_by_synflow(weights: Mapping[str, Tensor], context: PruningContext) -> None:
    ones = one_example_of_ones(context.model, context.batches()[0])
    synaptic_flow(context.model, ones, weights, context.mask)


def _check_wanda(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    require_layers(model, weights)
    for name in weights:
        parent = model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"'{name}' is the output projection of a MultiheadAttention, which uses the weight and does not call "
                "the layer, so that criterion wanda sees no inputs of it: name it in exclude_modules, or use another "
                "criterion"
            )


def _scored_by_wanda(weights: Mapping[str, Tensor], context: PruningContext) -> dict[str, Tensor]:
    norms = input_norms(context.model, weights, lambda batch: context.model(**batch), context.batches())
    return wanda(weights, norms, known_axes(context.model, weights))


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(lambda weights, _: weights, key=torch.abs),
    "random": Criterion(_scored_by_random),
    "large_init": Criterion(_scored_by_large_init, INITIAL),
    "magnitude_increase": Criterion(lambda weights, context: magnitude_increase(weights, context.initial()), INITIAL),
    "movement": Criterion(lambda weights, context: movement(weights, context.initial()), INITIAL),
    "snip": Criterion(_scored_by_snip, DATA),
    "grasp": Criterion(_scored_by_grasp, DATA),
    "synflow": Criterion(_scored_by_synflow, DATA, check=require_inputs_embeds, trial=_tried_by_synflow),
    "wanda": Criterion(_scored_by_wanda, DATA, check=_check_wanda),
    "lora_product": Criterion(
        lambda weights, _: lora_product(weights), check=lambda _, weights: require_lora(weights)
    ),
}


def criterion_of(criterion: str | Callable) -> Criterion:
    """The criterion of this name; a user's function becomes one that may need data."""
    if callable(criterion):
        return Criterion(partial(call_custom, criterion), DATA)
    return CRITERIA[criterion]


def _initial_value(weight: Tensor, initial: Mapping[str, Tensor], name: str) -> Tensor:
    """θ_k's value for a weight, on the weight's device and in its dtype."""
    if name not in initial:
        raise ValueError(f"the rewind point holds no '{name}'; capture it from the model whose weights are scored")
    return initial[name].detach().to(weight.device, weight.dtype)
