"""One pruning: the criterion scores the weights, the pattern prunes the groups of the lowest scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd
from transformers import set_seed

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.processes import mean_over_ranks
from hf_lottery.mask import Mask
from hf_lottery.pruning.context import NoCalibration, PruningContext
from hf_lottery.pruning.criteria import DATA, criterion_of
from hf_lottery.pruning.custom import require_no_nan
from hf_lottery.pruning.embeddings import prune_rows, token_embeddings
from hf_lottery.pruning.patterns import pattern_of
from hf_lottery.pruning.untrained import require_trained_lora
from hf_lottery.random_state import random_state_kept

Scores = tuple[Mapping[str, Tensor], Callable[[Tensor], Tensor] | None]


def next_mask(context: PruningContext) -> Mask:
    """The mask after one pruning, as `context.config` says.

    Raises:
        ValueError: the network lacks what criterion or pattern needs, FSDP2 has sharded weights that they need whole,
            or a LoRA is not trained enough for its scores to decide what is pruned.
        RuntimeError: the criterion needs θ_k, and training has not reached step k.
    """
    if any(isinstance(weight, DTensor) for weight in context.weights.values()):
        refuse_sharded(context.config)
    pattern = pattern_of(context.config)
    if not pattern.uses_criterion:
        return pattern.prune(context, context.weights, None)
    scores, key = score(context)
    if context.config.prune_embeddings is None:
        mask = pattern.prune(context, scores, key)
        require_trained_lora(scores, key, context.mask, mask, context.config, context.rates)
        return mask
    table = token_embeddings(context.model)
    rows = prune_rows(scores, context.mask, context.config.pruning_rate, table, context.rates, key)
    rest = context.without(table)
    others = pattern.prune(rest, {name: scores[name] for name in rest.mask}, key)
    return Mask({name: rows[name] if name == table else others[name] for name in context.mask})


def score(context: PruningContext) -> Scores:
    """The scores of all weights, by the criterion of `context.config`.

    Returns:
        (scores, key). scores: name -> tensor of the parameter's shape. key: the elementwise function to apply to them
        while they are compared, None if they are compared as they are. By magnitude these are the weights themselves
        and `torch.abs`, so that no copy of a large model is made.

    Raises:
        ValueError: the criterion cannot score the network, or a user's function returns wrong scores.
    """
    config, weights = context.config, context.weights
    criterion = criterion_of(config.criterion)
    if criterion.needs == DATA:
        with _calibration(context.model, context.seed):
            # the same on every rank already, where the criterion adds up over ranks
            scores = mean_over_ranks(criterion.function(weights, context))
    else:
        scores = criterion.function(weights, context)
    if callable(config.criterion):
        require_no_nan(scores, context.mask, config.criterion_name)
    return scores, criterion.key


def rehearse(context: PruningContext) -> None:
    """Score with a batch of data, and forget the scores: what cannot be scored is found before a round is trained.

    For the criteria of this package that need data. If the first batch alone is refused, such as because it does not
    reach every layer, all of them are tried.

    Raises:
        ValueError: the criterion cannot score the network with these data.
    """
    config, criterion = context.config, criterion_of(context.config.criterion)
    if callable(config.criterion) or criterion.needs != DATA:
        return
    try:
        with _calibration(context.model, context.seed):
            batches = _drawn(context)  # here, as this draws random numbers
            if not batches:
                return
            try:
                criterion.rehearse(context.weights, replace(context, batches=lambda: batches[:1]))
            except ValueError:
                if len(batches) < 2:
                    raise
                criterion.rehearse(context.weights, replace(context, batches=lambda: batches))
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each of the many classes of models refuses an input in its own way
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"criterion {config.criterion_name} cannot score this {type(context.model).__name__} with its training "
            f"data ({type(error).__name__}: {said}): use another criterion, such as magnitude"
        ) from error


def _drawn(context: PruningContext) -> list[Any]:
    """The calibration batches; none where they cannot be put together yet, as `data_collator` can still be set."""
    try:
        return context.batches()
    except NoCalibration:
        raise
    except Exception:  # whatever the trainer's dataset and collator raise; training says it too
        return []


def check_network(
    model: nn.Module, config: LotteryConfig, weights: Mapping[str, Tensor], rates: Mapping[str, float]
) -> None:
    """Raise now, before a round is trained, the ValueError that the first pruning would raise.

    Args:
        model: whole and on its device, as the trainer gets it.
        config: how to prune.
        weights: name -> parameter, those of the mask.
        rates: parameter name -> its own rate.
    """
    if config.prune_embeddings is not None:
        table = token_embeddings(model)
        weights = {name: weight for name, weight in weights.items() if name != table}
    criterion, pattern = criterion_of(config.criterion), pattern_of(config)
    if criterion.check is not None:
        criterion.check(model, weights)
    if pattern.check is not None:
        pattern.check(model, config, weights, rates)


def refuse_sharded(config: LotteryConfig) -> None:
    """Raise a ValueError for a config that needs whole weights; call it where FSDP2 shards them."""
    if (config.criterion, config.pattern, config.prune_embeddings) != ("magnitude", "weight", None):
        raise ValueError(
            f"criterion {config.criterion_name} with pattern {config.pattern}"
            + (", and prune_embeddings," if config.prune_embeddings else "")
            + " needs whole weights, and FSDP2 shards them: use criterion magnitude with pattern weight, or DDP"
        )


@contextmanager
def _calibration(model: nn.Module, seed: int) -> Iterator[None]:
    """Run the block in training mode without dropout, under `seed`; then restore all but the values of parameters.

    A search that is resumed then sees the same batches as one that was not stopped.
    """
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    with random_state_kept():
        set_seed(seed)
        try:
            model.train()
            for module in model.modules():
                if isinstance(module, _DropoutNd):
                    module.eval()
            yield
        finally:
            model.train(was_training)
            for name, buffer in model.named_buffers():  # batch norm has changed its statistics
                buffer.copy_(buffers[name])
            for parameter, requires_grad, gradient in parameters:  # a user's function may freeze, or call backward
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
