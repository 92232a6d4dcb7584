"""Pruning of whole rows of the token embeddings: a row is a token; the lowest mean scores are pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_lottery.mask import Mask
from hf_lottery.pruning.groups import prune_neurons


def token_embeddings(model: nn.Module) -> str:
    """The name of the weight (tokens, width) of a model's input embeddings.

    Raises:
        ValueError: the model has no token embeddings of its own that could be trained.
    """
    # of a PEFT model they belong to the frozen base
    table = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(table, nn.Embedding):
        raise ValueError(
            f"prune_embeddings is rows, and a {type(model).__name__} has no token embeddings to train: leave it out"
        )
    return next(f"{name}.weight" for name, module in model.named_modules() if module is table)


def prune_rows(
    scores: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    table: str,
    rates: Mapping[str, float] | None = None,
    key: Callable[[Tensor], Tensor] | None = None,
) -> Mask:
    """One pruning of the token embeddings alone: removes the round(rate · alive rows) rows of lowest mean score.

    Args:
        scores, alive, rate, rates, key: as for `prune`.
        table: name of the embeddings' weight.

    Returns:
        The mask of `table` alone.
    """
    own = {table: rates[table]} if rates and table in rates else None
    return prune_neurons({table: scores[table]}, Mask({table: alive[table]}), rate, own, key=key)
