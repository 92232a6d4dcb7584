"""Attention heads: which weights belong to one head, and pruning of whole heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_lottery.mask import Mask
from hf_lottery.pruning.groups import Key, comparable, group_mean
from hf_lottery.pruning.selection.select import prune

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
        count: how many heads can be pruned one by one: with grouped queries the key-value heads, each together with
            its query heads.
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

    Queries are grouped where the key projection is smaller than the query projection. Query heads that share a
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
        projections = _projections(prefix, linear)
        if projections is not None:
            count = _count_heads(prefix, [linear[name].shape for name in projections], num_heads)
            result[prefix] = Heads(*(f"{name}.weight" for name in projections), count)
    if not result:
        raise ValueError(
            f"pattern is head, and no attention of this {type(model).__name__} has query, key, value and output "
            "projections that are linear layers of their own; use pattern neuron or weight"
        )
    return result


def head_scores(
    scores: Mapping[str, Tensor], alive: Mask, heads: Mapping[str, Heads], key: Key = None
) -> dict[str, Tensor]:
    """The score of each head: the mean score of its weights in all four projections.

    Returns:
        name of the attention layer -> (heads,); pruned weights count as 0.
    """
    result = {}
    for layer, layer_heads in heads.items():
        views = {
            name: layer_heads.view(comparable(scores[name], key, alive[name], name), name)
            for name in layer_heads.names
        }
        total = sum(view.sum(1) for view in views.values())
        result[layer] = group_mean(total, sum(view.shape[1] for view in views.values()), layer, "head")
    return result


def prune_heads(
    scores: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    heads: Mapping[str, Heads],
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
    key: Key = None,
) -> Mask:
    """One pruning of whole attention heads; masks of tensors outside attention layers are left as they are.

    With grouped queries a key-value head is pruned together with all the query heads that share it. A head is alive
    while any of its weights is.

    Args:
        scores, alive, rate, scope, key: as for `prune`, with heads in place of weights.
        heads: the attention layers, as `attention_heads(model)` finds them.
        rates: parameter name -> its own rate; those of one attention layer are the same.

    Raises:
        ValueError: as `prune`; a projection of a layer is not in `alive`, or has another rate than the others.
    """
    living, layer_rates = {}, {}
    require_projections(heads, alive)
    for layer, layer_heads in heads.items():
        of_layer = {(rates or {}).get(name, rate) for name in layer_heads.names}
        if len(of_layer) > 1:
            raise ValueError(f"the projections of '{layer}' have different pruning rates; heads need the same for all")
        layer_rates[layer] = of_layer.pop()
        living[layer] = torch.stack([layer_heads.view(alive[name], name).any(1) for name in layer_heads.names]).any(0)
    kept = prune(head_scores(scores, alive, heads, key), Mask(living), rate, layer_rates, scope)
    result = dict(alive)
    for layer, layer_heads in heads.items():
        for name in layer_heads.names:
            result[name] = alive[name] & layer_heads.expand(
                kept[layer].to(alive[name].device), name, alive[name].shape
            )
    return Mask(result)


def require_projections(heads: Mapping[str, Heads], names: Collection[str]) -> None:
    """Raise a ValueError if a projection of an attention layer is not among the `names` of weights to prune."""
    for layer, layer_heads in heads.items():
        for name in layer_heads.names:
            if name not in names:
                raise ValueError(
                    f"a head is pruned in all four projections of '{layer}', and '{name}' is not among the weights "
                    "that are pruned; add it to target_modules"
                )


def _projections(prefix: str, linear: Collection[str]) -> tuple[str, str, str, str] | None:
    """Names of the query, key, value and output layers of the module `prefix`; None if one is missing."""
    start = f"{prefix}." if prefix else ""
    for names in _NAMES:
        query, key, value, output = (start + name for name in names)
        if {query, key, value, output} <= set(linear):
            return query, key, value, output
    return None


def _count_heads(prefix: str, shapes: list[torch.Size], num_heads: int) -> int:
    """How many heads the layer has, from the shapes (out, in) of its query, key, value and output projections."""
    query, key, value, output = shapes
    head_size = query[0] // num_heads
    rows = [query[0], key[0], value[0], output[1]]
    if any(size % head_size for size in rows):
        raise ValueError(
            f"the projections of '{prefix}' have {rows} features, which is no multiple of the head size {head_size}"
        )
    return key[0] // head_size
