"""Who goes: exactly the `count` lowest scores, over all tensors together or group by group, at any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.allocation import allocate, erk_share, uniform_share
from hf_lottery.pruning.selection.pieces import Piece, Pieces, number, tensor
from hf_lottery.pruning.selection.shards import Shards
from hf_lottery.pruning.selection.threshold import find_threshold
from hf_lottery.pruning.selection.ties import last_ties

_SHARES = {"erk": erk_share, "uniform": uniform_share}


def select(
    scores: Mapping[str, Tensor],
    alive: Mask,
    count: int,
    key: Callable[[Tensor], Tensor] | None = None,
    shards: Shards | None = None,
) -> Mask:
    """Keep all but the `count` lowest-scoring alive weights, over all tensors together.

    Exact: removes `count` weights, ties broken by (name, flat index). Scores compare as numbers, across dtypes; −0 is
    0. They are read where they lie, in runs that fit a cache, and never copied, sorted or joined: beside the mask
    that is returned, memory is O(2^20), whatever the size.

    Args:
        scores: name -> score, any float dtype, shaped as the parameter. NaN is an error where the weight is alive.
        alive: which weights may be removed; its names are those of `scores`.
        count: how many to remove, 0 <= count <= alive.count().
        key: an elementwise function applied to the scores, run by run; `torch.abs` on weights selects by magnitude.
        shards: where these are a process's parts of larger tensors. `count` is then over all processes, which call
            this together, and each gets the mask of its own parts, the same as one process would find.

    Returns:
        The new mask, on the devices of `alive`; never over a weight that `alive` has pruned already.

    Raises:
        ValueError: a score is NaN, the names or shapes of `scores` and `alive` differ, or `count` is out of range.

    Source: global magnitude pruning, Frankle et al. 2020 (arXiv 1912.05671), Algorithm 2.
    """
    kept = _check(scores, alive, shards)
    total = sum(kept.values())
    if not 0 <= count <= total:
        raise ValueError(f"cannot remove {count} weights: {total} are alive")
    return _select(scores, alive, kept, count, key, shards)


def prune(
    scores: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
    key: Callable[[Tensor], Tensor] | None = None,
    shards: Shards | None = None,
) -> Mask:
    """One pruning: remove n = round(rate · alive) of the lowest-scoring alive weights of every group.

    Args:
        scores: name -> score, as for `select`.
        alive: the mask of the round that was trained.
        rate: share of the alive weights that goes, 0 <= rate <= 1.
        rates: parameter name -> its own rate instead of `rate`; 0 leaves the tensor alone.
        scope: "layer": every tensor is a group. Otherwise all tensors of the same rate are one; of a group,
            "global": the lowest scores go, wherever they are. "erk": every tensor keeps the share that the
            Erdős–Rényi–Kernel rule gives it, and "uniform": the same density, as far as it has as many alive.
        key, shards: as for `select`.

    Raises:
        ValueError: as `select`; a rate outside [0, 1], a name of `rates` that is not in `alive`, or an unknown scope.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), Strategy 1: layer-wise for LeNet and Conv-2/4/6,
        global for ResNet and VGG.
    """
    kept = _check(scores, alive, shards)
    rate_of = _rate_of_each(alive, rate, rates or {})
    groups = _groups(
        kept, rate_of, scope, {name: mask.shape for name, mask in alive.items()} if shards is None else shards.shapes
    )
    result = {}
    for names, count in groups.items():
        of_group = {name: kept[name] for name in names}
        result.update(_select({name: scores[name] for name in names}, alive, of_group, count, key, shards))
    return Mask({name: result[name] for name in alive})


def _groups(
    kept: Mapping[str, int], rate_of: Mapping[str, float], scope: str, shapes: Mapping[str, torch.Size]
) -> dict[tuple[str, ...], int]:
    """Names of tensors whose scores are compared with one another -> how many weights of these go."""
    if scope == "layer":
        return {(name,): round(rate_of[name] * kept[name]) for name in kept}
    groups = {}
    for rate in sorted(set(rate_of.values())):
        names = tuple(name for name in kept if rate_of[name] == rate)
        groups[names] = round(rate * sum(kept[name] for name in names))
    if scope == "global":
        return groups
    if scope not in _SHARES:
        raise ValueError(f"scope is {scope!r}; it must be one of layer, global, {', '.join(_SHARES)}")
    result = {}
    for names, count in groups.items():
        capacities = {name: kept[name] for name in names}
        shares = {name: _SHARES[scope](shapes[name]) for name in names}
        stay = allocate(capacities, shares, sum(capacities.values()) - count)
        result |= {(name,): kept[name] - stay[name] for name in names}
    return result


def _rate_of_each(alive: Mask, rate: float, rates: Mapping[str, float]) -> dict[str, float]:
    for name in rates:
        if name not in alive:
            raise ValueError(f"there is a pruning rate for '{name}', which the mask does not have")
    rate_of = {name: rates.get(name, rate) for name in alive}
    for name, value in rate_of.items():
        if not 0 <= value <= 1:
            raise ValueError(f"the pruning rate of '{name}' is {value}; it must be between 0 and 1")
    return rate_of


def _check(scores: Mapping[str, Tensor], alive: Mask, shards: Shards | None) -> dict[str, int]:
    """Name -> how many weights are alive, over all processes."""
    if scores.keys() != alive.keys():
        odd = sorted(scores.keys() ^ alive.keys())[0]
        where, other = ("the scores", "the mask") if odd in scores else ("the mask", "the scores")
        raise ValueError(f"'{odd}' is in {where} but not in {other}; give both for the same tensors")
    for name in alive:
        score = scores[name]
        if score.shape != alive[name].shape:
            raise ValueError(
                f"the scores of '{name}' have shape {tuple(score.shape)} and its mask {tuple(alive[name].shape)}; "
                "both are shaped as the parameter"
            )
        if not score.dtype.is_floating_point:
            raise ValueError(f"the scores of '{name}' have dtype {score.dtype}; give a float dtype")
    counts = torch.tensor([_count(mask) for mask in alive.values()], dtype=torch.int64)
    return dict(zip(alive, _sum(counts, shards).tolist(), strict=True))


def _count(mask: Tensor) -> int:
    return number(mask.numpy() if mask.is_cpu else mask)


def _sum(counts: Tensor, shards: Shards | None) -> Tensor:
    return counts if shards is None else shards.all_reduce(counts)


def _select(scores, alive, kept: Mapping[str, int], count: int, key, shards: Shards | None) -> Mask:
    """`select` among the tensors of `kept` (name -> alive weights over all processes), everything checked."""
    names = sorted(kept)
    if count == 0:
        return Mask({name: alive[name].clone() for name in names})
    if shards is None:
        whole, offsets = {name: alive[name].numel() for name in names}, dict.fromkeys(names, 0)
    else:
        whole, offsets = {name: shards.shapes[name].numel() for name in names}, shards.offsets
    dense = {name for name in names if kept[name] == whole[name]}
    pieces = Pieces({name: scores[name] for name in names}, alive, dense, key)
    threshold = find_threshold(pieces, sum(kept.values()), count, lambda counts: _sum(counts, shards))
    if threshold.remove == threshold.ties:
        last_tie = pieces.numel
    else:
        last_tie = last_ties(
            pieces, threshold.value, threshold.remove, lambda counts: _sum(counts, shards), whole, offsets
        )
    result = {name: torch.empty_like(alive[name], memory_format=torch.contiguous_format) for name in names}

    def write(piece: Piece) -> None:
        keep = piece.values > threshold.value
        first_kept = max(last_tie[piece.name] + 1 - piece.start, 0)
        if first_kept < len(keep):
            keep[first_kept:] = piece.values[first_kept:] >= threshold.value
        if piece.alive is not None:
            keep &= piece.alive
        result[piece.name].view(-1)[piece.start : piece.start + len(keep)] = tensor(keep)

    pieces.each(write)
    return Mask(result)
