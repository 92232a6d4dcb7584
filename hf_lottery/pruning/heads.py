"""Heads: which weights of a Transformer's attention belong to one head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# how transformers' models name their query, key, value and output projections
_NAMES = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("self.query", "self.key", "self.value", "output.dense"),
    ("attention.query", "attention.key", "attention.value", "output.dense"),
)


@dataclass(frozen=True)
class Heads:
    """The heads of one attention layer.

    Args:
        query, key, value, output: names of the projections' weights; the first three have heads in their rows, the
            last in its columns.
        count: heads that can go one by one: with grouped queries the key-value heads, each with its query heads.
    """

    query: str
    key: str
    value: str
    output: str
    count: int

    @property
    def names(self) -> tuple[str, str, str, str]:
        return self.query, self.key, self.value, self.output

    def view(self, weight: Tensor, name: str) -> Tensor:
        """(heads, weights of one head) of the projection `name`."""
        return (weight.t() if name == self.output else weight).unflatten(0, (self.count, -1)).flatten(1)

    def expand(self, kept: Tensor, name: str, shape: torch.Size) -> Tensor:
        """(heads,) bools -> bools that broadcast over the projection `name` of this shape."""
        if name == self.output:
            return kept.repeat_interleave(shape[1] // self.count).view(1, -1)
        return kept.repeat_interleave(shape[0] // self.count).view(-1, 1)


def attention_heads(model: nn.Module) -> dict[str, Heads]:
    """The attention layers of a transformers model.

    Grouped queries are seen by a key projection that is smaller than the query projection. Query heads that share a
    key-value head are neighbours, in rows of the query and in columns of the output projection.

    Args:
        model: with a `config.num_attention_heads`.

    Returns:
        name of the layer -> its heads.

    Raises:
        ValueError: the model has no attention heads, or none whose projections are linear layers of their own.
    """
    # a config has the field only if its network has heads
    num_heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
    if num_heads is None:
        raise ValueError(f"pattern is head, and a {type(model).__name__} has no attention heads; use pattern neuron")
    linear = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    result = {}
    for prefix, _ in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for names in _NAMES:
            query, key, value, output = (start + name for name in names)
            if not {query, key, value, output} <= linear.keys():
                continue
            head_size = linear[query].shape[0] // num_heads
            rows = [linear[name].shape[0] for name in (query, key, value)] + [linear[output].shape[1]]
            if any(size % head_size for size in rows):
                raise ValueError(
                    f"the projections of '{prefix}' have {rows} features, which heads of {head_size} do not divide"
                )
            count = linear[key].shape[0] // head_size
            result[prefix] = Heads(*(f"{name}.weight" for name in (query, key, value, output)), count)
    if not result:
        raise ValueError(
            f"pattern is head, and no attention of this {type(model).__name__} has query, key, value and output "
            "projections that are linear layers of their own; use pattern neuron or weight"
        )
    return result
