"""Who goes: exactly the `count` lowest scores, over all tensors together or group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask


def select(
    scores: Mapping[str, Tensor],
    alive: Mask,
    count: int,
    key: Callable[[Tensor], Tensor] | None = None,
) -> Mask:
    """Keep all but the `count` lowest-scoring alive weights, over all tensors together.

    Exact: removes `count` weights, ties broken by (name, flat index). Scores compare as numbers, across dtypes; −0 equals 0.

    Args:
        scores: name -> score, any float dtype, shaped as the parameter. NaN is an error where the weight is alive.
        alive: which weights may be removed; its names are those of `scores`.
        count: how many to remove, 0 <= count <= alive.count().
        key: an elementwise function applied to the scores; `torch.abs` on weights selects by magnitude.

    Returns:
        The new mask, on the devices of `alive`; never over a weight that `alive` has pruned already.

    Raises:
        ValueError: a score is NaN, the names or shapes of `scores` and `alive` differ, or `count` is out of range.

    Source: global magnitude pruning, Frankle et al. 2020 (arXiv 1912.05671), Algorithm 2.
    """
    _check(scores, alive, count)
    names = sorted(scores)
    result = {name: alive[name].clone(memory_format=torch.contiguous_format) for name in names}
    pools = []
    for name in names:
        chosen = scores[name].detach().flatten()[alive[name].to(scores[name].device).flatten()]
        pools.append(_comparable(chosen, key, name).double().cpu())
    # a stable sort of scores laid out by (name, flat index) breaks ties by just that
    gone = torch.cat(pools).argsort(stable=True)[:count] if pools else torch.empty(0, dtype=torch.long)
    removed = torch.zeros(sum(len(pool) for pool in pools), dtype=torch.bool)
    removed[gone] = True
    start = 0
    for name, pool in zip(names, pools, strict=True):
        result[name][alive[name]] = ~removed[start : start + len(pool)].to(result[name].device)
        start += len(pool)
    return Mask({name: result[name] for name in alive})


def prune(
    scores: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
    key: Callable[[Tensor], Tensor] | None = None,
) -> Mask:
    """One pruning: remove n = round(rate · alive) of the lowest-scoring alive weights of every group.

    Args:
        scores: name -> score, as for `select`.
        alive: the mask of the round that was trained.
        rate: share of the alive weights that goes, 0 <= rate <= 1.
        rates: parameter name -> its own rate instead of `rate`; 0 leaves the tensor alone.
        scope: "layer": every tensor is a group. "global": tensors of the same rate are compared with one another.
        key: as for `select`.

    Raises:
        ValueError: as `select`; a rate outside [0, 1], a name of `rates` that is not in `alive`, or an unknown scope.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), Strategy 1 (layer-wise for LeNet and Conv, global for ResNet and VGG).
    """
    _check(scores, alive, 0)
    rate_of = _rate_of_each(alive, rate, rates or {})
    if scope == "layer":
        groups = [[name] for name in alive]
    elif scope == "global":
        groups = [[name for name in alive if rate_of[name] == value] for value in sorted(set(rate_of.values()))]
    else:
        raise ValueError(f"scope is {scope!r}; it must be one of layer, global")
    result = {}
    for names in groups:
        group = Mask({name: alive[name] for name in names})
        count = round(rate_of[names[0]] * group.count())
        result.update(select({name: scores[name] for name in names}, group, count, key))
    return Mask({name: result[name] for name in alive})


def _rate_of_each(alive: Mask, rate: float, rates: Mapping[str, float]) -> dict[str, float]:
    for name in rates:
        if name not in alive:
            raise ValueError(f"there is a pruning rate for '{name}', which the mask does not have")
    rate_of = {name: rates.get(name, rate) for name in alive}
    for name, value in rate_of.items():
        if not 0 <= value <= 1:
            raise ValueError(f"the pruning rate of '{name}' is {value}; it must be between 0 and 1")
    return rate_of


def _check(scores: Mapping[str, Tensor], alive: Mask, count: int) -> None:
    if scores.keys() != alive.keys():
        odd = sorted(scores.keys() ^ alive.keys())[0]
        where, other = ("scores", "the mask") if odd in scores else ("the mask", "the scores")
        raise ValueError(f"'{odd}' is in {where} but not in {other}; give both for the same tensors")
    for name, score in scores.items():
        if score.shape != alive[name].shape:
            raise ValueError(
                f"the scores of '{name}' have shape {tuple(score.shape)} and its mask {tuple(alive[name].shape)}; "
                "both are shaped as the parameter"
            )
        if not score.dtype.is_floating_point:
            raise ValueError(f"the scores of '{name}' have dtype {score.dtype}; give a float dtype")
    total = alive.count() if count else 0
    if not 0 <= count <= total:
        raise ValueError(f"cannot remove {count} weights: {alive.count()} are alive")


def _comparable(scores: Tensor, key: Callable[[Tensor], Tensor] | None, name: str) -> Tensor:
    if key is not None:
        scores = key(scores)
    if scores.isnan().any():
        raise ValueError(
            f"a score of '{name}' is NaN; look for the first step at which the loss or its gradients were not finite"
        )
    return scores
