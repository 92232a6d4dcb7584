"""One pruning of a trainer's network: the criterion says what weights are worth, the pattern what goes together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel, set_seed

from hf_lottery.distributed.processes import mean_over_ranks
from hf_lottery.mask import Mask
from hf_lottery.pruning import criteria
from hf_lottery.pruning.embeddings import prune_rows, token_embeddings
from hf_lottery.pruning.heads import attention_heads
from hf_lottery.pruning.lora import lora_pairs, prune_ranks, require_comparable
from hf_lottery.pruning.patterns import (
    prune_heads,
    prune_n_of_m,
    prune_neurons,
    require_divides,
    require_projections,
)
from hf_lottery.pruning.selection.sharded import prune
from hf_lottery.pruning.synflow import synflow
from hf_lottery.random_state import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from hf_lottery.config import LotteryConfig
    from hf_lottery.training.trainer import LotteryMixin

CALIBRATION_BATCHES = 8  # of the training data, for criteria that look at data
Scores = tuple[Mapping[str, Tensor], Callable[[Tensor], Tensor] | None]


def next_mask(trainer: LotteryMixin, weights: Mapping[str, Tensor], rates: Mapping[str, float]) -> Mask:
    """The mask after one pruning, as the trainer's `lottery_config` says.

    Args:
        trainer: its model, data and rewind point are what criteria may look at.
        weights: name -> parameter, those of the trainer's mask.
        rates: parameter name -> its own rate.

    Raises:
        ValueError: the network has not what criterion or pattern needs, or its weights are sharded and they need them
            whole.
    """
    config, alive = trainer.lottery_config, trainer.mask
    plain = (config.criterion, config.pattern, config.prune_embeddings) == ("magnitude", "weight", None)
    if any(isinstance(w, DTensor) for w in weights.values()) and not plain:
        raise ValueError(
            f"criterion {config.criterion} with pattern {config.pattern}"
            + (", and prune_embeddings," if config.prune_embeddings else "")
            + " needs whole weights, and FSDP2 shards them: use criterion magnitude with pattern weight, or DDP"
        )
    how: dict[str, Any] = {"rate": config.pruning_rate, "rates": rates, "scope": config.scope}
    if config.pattern == "rank":
        return prune_ranks(weights, alive, **how)
    values, key = judge(trainer, weights, how)
    if config.scope != "layer" and key is None:
        for name in weights:
            if ".lora_" in name and not values[name].any():  # as while B is zero; ties would take all of it
                raise ValueError(
                    f"criterion {config.criterion} finds every weight of '{name}' worth 0, so that scope "
                    f"{config.scope} would prune all of it: train first, or use criterion lora_product, or scope layer"
                )
    if config.prune_embeddings is None:
        return _by_pattern(trainer, values, alive, how, key)
    table = token_embeddings(trainer.model)
    rows = prune_rows(values, alive, config.pruning_rate, table, rates, key)
    rest = Mask({name: mask for name, mask in alive.items() if name != table})
    own = {name: rate for name, rate in rates.items() if name != table}
    others = _by_pattern(trainer, {name: values[name] for name in rest}, rest, {**how, "rates": own}, key)
    return Mask({name: rows[name] if name == table else others[name] for name in alive})


def refuse_what_cannot_be_judged(
    model: nn.Module, config: LotteryConfig, weights: Mapping[str, Tensor], rates: Mapping[str, float]
) -> None:
    """Raise now the ValueError that the first pruning would raise, after a round that was trained for nothing.

    Args:
        model: whole and on its device, as the trainer gets it.
        weights: name -> parameter, those of the mask.
        rates: parameter name -> its own rate.
    """
    if config.prune_embeddings is not None:
        table = token_embeddings(model)
        weights = {name: weight for name, weight in weights.items() if name != table}
    if config.criterion == "synflow" and isinstance(model, PreTrainedModel) and model.main_input_name == "input_ids":
        forward = (model.get_base_model() if isinstance(model, PeftModel) else model).forward
        if "inputs_embeds" not in inspect.signature(forward).parameters:
            raise ValueError(
                f"criterion synflow gives a {type(model).__name__} ones in place of embeddings, and its forward takes "
                "no inputs_embeds: use another criterion"
            )
    if config.criterion == "wanda":
        for name in weights:
            criteria.feature_dimension(model.get_submodule(name.rpartition(".")[0]), name)
    if config.criterion == "lora_product" or config.pattern == "rank":
        lora_pairs(weights)
    if config.pattern == "head":
        require_projections(attention_heads(model), weights)
    elif ":" in config.pattern:
        n, m = map(int, config.pattern.split(":"))
        for name, weight in weights.items():
            rate = rates.get(name, config.pruning_rate)
            if name in rates and rate > 0:
                raise ValueError(
                    f"pruning_rates give '{name}' {rate}, and pattern {config.pattern} has no rate: only 0, which "
                    "leaves weights alone, goes with it"
                )
            if rate > 0:
                require_divides(n, m, name, weight.shape)


def _by_pattern(trainer: LotteryMixin, values: Mapping[str, Tensor], alive: Mask, how: Mapping[str, Any], key) -> Mask:
    pattern = trainer.lottery_config.pattern
    if pattern == "weight":
        return prune(values, alive, key=key, **how)
    if pattern == "neuron":
        return prune_neurons(values, alive, key=key, **how)
    if pattern == "head":
        return prune_heads(values, alive, heads=attention_heads(trainer.model), key=key, **how)
    n, m = map(int, pattern.split(":"))
    chosen = Mask({name: kept for name, kept in alive.items() if how["rates"].get(name, how["rate"]) > 0})
    pruned = prune_n_of_m(values, chosen, n, m, key)
    return Mask({name: pruned.get(name, kept) for name, kept in alive.items()})


def judge(trainer: LotteryMixin, weights: Mapping[str, Tensor], how: Mapping[str, Any]) -> Scores:
    """What each weight is worth: name -> tensor, and the function to see it through (None: the score itself).

    Magnitude gives the weights themselves and `torch.abs`, so that no copy of a large model is made.
    """
    criterion = trainer.lottery_config.criterion
    if criterion == "magnitude":
        if how["scope"] == "global":
            require_comparable(weights)
        return weights, torch.abs
    if criterion == "random":
        seed = trainer.args.seed * 1000 + trainer.current_round
        return criteria.random(weights, torch.Generator().manual_seed(seed)), None
    if criterion == "large_init":
        return criteria.large_init({name: trainer.rewind_point.tensors[name] for name in weights}), None
    if criterion in ("magnitude_increase", "movement"):
        return criteria.CRITERIA[criterion](weights, trainer.rewind_point.tensors), None
    if criterion == "lora_product":
        return criteria.lora_product(weights), None
    model, state = trainer.model, get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    # which batches, and what dropout drops: the same in a search that was stopped before and goes on
    set_seed(trainer.args.seed * 1000 + trainer.current_round)
    try:
        batches = [trainer._prepare_inputs(batch) for batch in _batches(trainer)]
        model.train()
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        if criterion == "synflow":
            return synflow(weights, model, one_example_of_ones(model, batches[0]), trainer.mask, **how), None
        if criterion == "wanda":
            norms = criteria.input_norms(model, list(weights), lambda batch: model(**batch), batches)
            return mean_over_ranks(criteria.wanda(weights, norms)), None
        return mean_over_ranks(criteria.CRITERIA[criterion](weights, _loss(trainer), batches)), None
    finally:
        set_rng_state(state)
        model.train(was_training)
        for name, buffer in model.named_buffers():  # batch norm has seen the batches
            buffer.copy_(buffers[name])


def one_example_of_ones(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SynFlow's input: ones, shaped as one example; where inputs are tokens, ones in place of their embeddings."""
    if "input_ids" in batch:
        width = model.get_input_embeddings().weight.shape[1]
        length = batch["input_ids"].shape[1]
        return {"inputs_embeds": torch.ones(1, length, width, device=batch["input_ids"].device)}
    return {
        name: torch.ones_like(value[:1])
        for name, value in batch.items()
        if name != "labels" and torch.is_tensor(value) and value.is_floating_point()
    }


def _batches(trainer: LotteryMixin) -> list[Any]:
    if trainer.train_dataset is None:
        raise ValueError(
            f"criterion {trainer.lottery_config.criterion} looks at data, and the trainer has no train_dataset: "
            "give it one, or use criterion magnitude"
        )
    return list(islice(trainer.get_train_dataloader(), CALIBRATION_BATCHES))


def _loss(trainer: LotteryMixin) -> criteria.Loss:
    """The batch's mean cross entropy of logits / temperature; the trainer's own loss where temperature is 1."""

    def loss(batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        if temperature == 1:
            return trainer.compute_loss(trainer.model, dict(batch))
        output = trainer.model(**batch)
        logits, labels = output["logits"].float() / temperature, batch["labels"]
        if labels.dim() > 1:  # a language model's, which predict the next token
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, labels)

    return loss
