"""Selection: remove exactly the `count` lowest scores, over all tensors together or group by group, at any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.allocation import allocate, erk_share, uniform_share
from hf_lottery.pruning.selection.chunks import Chunk, Chunks, number, tensor
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
    0. They are read in place, in chunks that fit the CPU's cache, and not copied, sorted or concatenated. Besides
    the returned mask, memory is O(2^20) for any size.

    Args:
        scores: name -> score, any float dtype, shaped as the parameter. NaN is an error where the weight is alive.
        alive: which weights may be removed; its names are those of `scores`.
        count: how many to remove, 0 <= count <= alive.count().
        key: an elementwise function applied to each chunk of scores; `torch.abs` on weights selects by magnitude.
        shards: given if these are this process's parts of larger tensors. `count` is then over all processes, which
            call this together; each gets the mask of its own parts, the same as a single process would compute.

    Returns:
        The new mask, on the devices of `alive`; what `alive` has pruned stays pruned.

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
        rate: share of the alive weights that is removed, 0 <= rate <= 1.
        rates: parameter name -> its own rate instead of `rate`; with 0 the tensor is not pruned.
        scope: "layer": every tensor is a group. Otherwise all tensors of the same rate are one group, and
            "global": the group's lowest scores are removed, from any of its tensors. "erk": every tensor keeps the
            share that the Erdős–Rényi–Kernel rule gives it. "uniform": every tensor keeps the same density, or all
            its alive weights if these are fewer.
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
    """Names of tensors whose scores are compared with each other -> how many of their weights are removed."""
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
    return {
        (name,): removed
        for names, count in groups.items()
        for name, removed in _by_share({name: kept[name] for name in names}, count, scope, shapes).items()
    }


def _by_share(kept: Mapping[str, int], count: int, scope: str, shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    """How many of the `count` weights to remove are in each tensor of a group, by its share under the scope."""
    shares = {name: _SHARES[scope](shapes[name]) for name in kept}
    stay = allocate(kept, shares, sum(kept.values()) - count)
    return {name: kept[name] - stay[name] for name in kept}


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
    """`select` among the tensors of `kept` (name -> alive weights over all processes), without checks."""
    names = sorted(kept)
    if count == 0:
        return Mask({name: alive[name].clone() for name in names})
    if shards is None:
        whole, offsets = {name: alive[name].numel() for name in names}, dict.fromkeys(names, 0)
    else:
        whole, offsets = {name: shards.shapes[name].numel() for name in names}, shards.offsets
    dense = {name for name in names if kept[name] == whole[name]}
    chunks = Chunks({name: scores[name] for name in names}, alive, dense, key)
    all_reduce = partial(_sum, shards=shards)
    threshold = find_threshold(chunks, sum(kept.values()), count, all_reduce)
    if threshold.remove == threshold.ties:
        last_tie = chunks.numel
    else:
        last_tie = last_ties(chunks, threshold.value, threshold.remove, all_reduce, whole, offsets)
    result = {name: torch.empty_like(alive[name], memory_format=torch.contiguous_format) for name in names}
    _write_kept(result, chunks, threshold.value, last_tie)
    return Mask(result)


def _write_kept(result: Mapping[str, Tensor], chunks: Chunks, value: float, last_tie: Mapping[str, int]) -> None:
    """Write into `result` which alive scores are above `value`, or equal it after the tensor's last tie."""

    def write(chunk: Chunk) -> None:
        keep = chunk.values > value
        first_kept = max(last_tie[chunk.name] + 1 - chunk.start, 0)
        if first_kept < len(keep):
            keep[first_kept:] = chunk.values[first_kept:] >= value
        if chunk.alive is not None:
            keep &= chunk.alive
        result[chunk.name].view(-1)[chunk.start : chunk.start + len(keep)] = tensor(keep)

    chunks.each(write)
