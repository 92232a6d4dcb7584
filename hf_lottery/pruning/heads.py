"""Attention heads: the weights that belong to one head, and pruning of whole heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.groups import Key, comparable, group_mean
from hf_lottery.pruning.places import Groups
from hf_lottery.pruning.selection.select import prune


class Heads(Groups):
    """The heads of one attention layer: in the outputs of queries, keys and values, in one weight or in several, and
    last in the inputs of the output projection.

    `count` is how many can be pruned one by one: with grouped queries the key-value heads, each together with its
    query heads. If all queries share one key and value, these stay, and the query heads are pruned one by one. Places
    are in the parameters' own dimensions.
    """


def head_scores(
    scores: Mapping[str, Tensor], alive: Mask, heads: Mapping[str, Heads], key: Key = None
) -> dict[str, Tensor]:
    """The score of each head: the mean score of its weights in all projections.

    Returns:
        name of the attention layer -> (heads,); pruned weights count as 0.
    """
    result = {}
    for layer, layer_heads in heads.items():
        own = {name: comparable(scores[name], key, alive[name], name) for name in layer_heads.names}
        result[layer] = group_mean(*layer_heads.sums(own), layer, "head")
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

    With grouped queries a key-value head is pruned together with all the query heads that share it; the only one of a
    layer stays. A head is alive while any of its weights is.

    Args:
        scores, alive, rate, scope, key: as for `prune`, with heads in place of weights.
        heads: the attention layers, as `attention_heads(model)` finds them; those of which `alive` has no weight are
            passed over.
        rates: parameter name -> its own rate; those of one attention layer are the same.

    Raises:
        ValueError: as `prune`; only a part of a layer is in `alive`, or its projections have different rates.
    """
    living, layer_rates = {}, {}
    heads = require_projections(heads, alive, rate, rates or {})
    for layer, layer_heads in heads.items():
        layer_rates[layer] = (rates or {}).get(layer_heads.names[0], rate)
        living[layer] = layer_heads.living_parts(alive).any(0)
    kept = prune(head_scores(scores, alive, heads, key), Mask(living), rate, layer_rates, scope)
    result = dict(alive)
    for layer, layer_heads in heads.items():
        for name in layer_heads.names:
            own = layer_heads.expand(kept[layer].to(alive[name].device), name, alive[name].shape)
            result[name] = alive[name] & own
    return Mask(result)


def require_projections(
    heads: Mapping[str, Heads], names: Collection[str], rate: float = 0.0, rates: Mapping[str, float] | None = None
) -> dict[str, Heads]:
    """The layers that are pruned: all their projections are among the `names` of weights to prune, at one rate.

    Raises:
        ValueError: a layer has only some of its projections among them, or at different rates, or there is no layer.
    """
    found = {}
    for layer, layer_heads in heads.items():
        missing = [name for name in layer_heads.names if name not in names]
        if len(missing) == len(layer_heads.names):
            continue
        if missing:
            raise ValueError(
                f"a head is pruned in all projections of '{layer}', and '{missing[0]}' is not among the weights that "
                f"are pruned; add it to target_modules, or name '{layer}' in exclude_modules"
            )
        if len({(rates or {}).get(name, rate) for name in layer_heads.names}) > 1:
            raise ValueError(f"the projections of '{layer}' have different pruning rates; heads need the same for all")
        found[layer] = layer_heads
    if not found:
        raise ValueError(
            f"pattern is head, and none of the weights that are pruned is of an attention layer, such as "
            f"'{next(iter(heads))}': add its projections to target_modules, or use pattern neuron"
        )
    return found
