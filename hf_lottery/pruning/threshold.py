"""The threshold under which exactly `count` scores lie, found by counting.

A float's bit pattern, read as an integer, sorts as the float does, so the threshold can be found as a radix search finds it:
a pass counts the scores below a bracket and how many inside it fall into each of up to 2^20 bins of bit patterns; the bin
that holds the threshold is the next bracket. A random sample makes the first bracket so narrow that nearly always one pass
is enough; a bracket that misses costs another pass, never exactness. Only counts are kept: any number of ties is as good as
none, and processes that hold a part of the scores each need only add up their counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_lottery.pruning.pieces import Array, Piece, Pieces, number, tensor

_BINS = 20  # log2 of the bins of a pass,
_FEW_BINS = 14  # and where scores are few enough that another pass is cheaper than many bins
_SAMPLE = 1 << 19  # scores that the first bracket is guessed from
_COUNT_ALL = 1 << 20  # up to so many scores a sample saves nothing


@dataclass(frozen=True)
class Threshold:
    """The `count`-th lowest score.

    Args:
        value: that score.
        ties: how many scores equal it.
        remove: how many of these are among the `count` lowest, 1 <= remove <= ties.
    """

    value: float
    ties: int
    remove: int


def find_threshold(pieces: Pieces, total: int, count: int, all_reduce: Callable[[Tensor], Tensor]) -> Threshold:
    """Find the `count`-th lowest alive score.

    Args:
        pieces: this process's scores.
        total: how many scores are alive, over all processes.
        count: 1 <= count <= total.
        all_reduce: adds an int64 tensor up over all processes.

    Raises:
        ValueError: a score is NaN.

    Source: radix selection; the bracket from a sample is Floyd & Rivest 1975 (SELECT, CACM algorithm 489).
    """
    infinity = _INFINITY[pieces.dtype]
    low, high = -infinity, infinity  # the threshold lies in [low, high], as ordered integers
    many = total > _COUNT_ALL
    bracket = _guess(pieces, total, count, all_reduce) if many else (low, high)
    first_pass = True
    while True:
        start, stop = bracket
        under, bins, shift = _count(
            pieces, start, stop, _BINS if many else _FEW_BINS, all_reduce, check_nan=first_pass
        )
        first_pass = False
        if count <= under:
            high = start - 1
        elif count > under + int(bins.sum()):
            low = stop + 1
        else:
            running = bins.cumsum(0)
            chosen = int(torch.searchsorted(running, count - under))
            first = ((start >> shift) + chosen) << shift
            low, high = max(start, first), min(stop, first + (1 << shift) - 1)
            if low == high:
                below = under + int(running[chosen] - bins[chosen])
                return Threshold(_to_float(low, pieces.dtype), int(bins[chosen]), count - below)
        bracket = low, high


def _guess(pieces: Pieces, total: int, count: int, all_reduce: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """A bracket that holds the threshold unless a sample is out by more than five standard deviations."""
    infinity = _INFINITY[pieces.dtype]
    shift = torch.finfo(pieces.dtype).bits - 16
    lowest, highest = -infinity >> shift, infinity >> shift
    bins = torch.zeros(highest - lowest + 1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    numel = sum(pieces.numel.values())
    numel_everywhere = int(all_reduce(torch.tensor([numel])))
    for name in pieces.names:
        size = pieces.numel[name]
        # as many of a tensor as is its share of all, so that every process's sample weighs the same
        for taken in _split(-(-_SAMPLE * size // numel_everywhere), 1 << 17):
            positions = torch.randint(size, (taken,), generator=generator)
            found = _ordered(pieces.sample(name, positions)) >> shift
            bins += torch.bincount(found.clamp_(lowest, highest) - lowest, minlength=len(bins))  # NaN is found later
    running = all_reduce(bins).cumsum(0)
    sampled = int(running[-1])
    share = count / total
    slack = 5 * (sampled * share * (1 - share)) ** 0.5 + 5
    first = int(torch.searchsorted(running, share * sampled - slack)) if share * sampled > slack else 0
    last = int(torch.searchsorted(running, share * sampled + slack))
    return max((lowest + first) << shift, -infinity), min(((lowest + last + 1) << shift) - 1, infinity)


def _split(total: int, size: int) -> list[int]:
    return [min(size, total - done) for done in range(0, total, size)]


def _count(
    pieces: Pieces, start: int, stop: int, log_bins: int, all_reduce: Callable[[Tensor], Tensor], check_nan: bool
) -> tuple[int, Tensor, int]:
    """(alive scores below `start`, counts of those in [start, stop] by bins of 2^shift ordered integers, shift)."""
    shift = max(0, (stop - start).bit_length() - log_bins)
    start_value, stop_value = _to_float(start, pieces.dtype), _to_float(stop, pieces.dtype)
    under, broken = 0, set()
    bins = _Bins(start >> shift, stop >> shift, shift)
    lock = threading.Lock()

    def work(piece: Piece) -> None:
        nonlocal under
        values, alive = piece.values, piece.alive
        if check_nan and _has_nan(values, alive):
            broken.add(piece.name)
        low = values < start_value
        inside = (values <= stop_value) ^ low
        if alive is not None:
            low &= alive
            inside &= alive
        lows, found = number(low), values[inside]
        with lock:
            under += lows
            bins.add(tensor(found))

    pieces.each(work)
    nan = [name in broken for name in pieces.names]
    counts = all_reduce(torch.cat([torch.tensor([under, *nan], dtype=torch.int64), bins.counts()]))
    nan = counts[1 : 1 + len(nan)].tolist()
    if any(nan):
        raise ValueError(
            f"a score of '{pieces.names[nan.index(max(nan))]}' is NaN; "
            "look for the first step at which the loss or a gradient was not finite"
        )
    return int(counts[0]), counts[1 + len(nan) :], shift


def _has_nan(values: Array, alive: Array | None) -> bool:
    largest = values.max()  # NaN if any is: reading bools only then
    return bool(largest != largest) and (alive is None or number((values != values) & alive) > 0)


class _Bins:
    """Counts of scores by their ordered integers >> shift, from `first` to `last`; added up in large batches."""

    _BATCH = 1 << 18

    def __init__(self, first: int, last: int, shift: int):
        self._counts = torch.zeros(last - first + 1, dtype=torch.int64)
        self._first, self._shift = first, shift
        self._waiting, self._size = [], 0

    def add(self, values: Tensor) -> None:
        if values.numel() == 0:
            return
        self._waiting.append(values)
        self._size += values.numel()
        if self._size >= self._BATCH:
            self.counts()

    def counts(self) -> Tensor:
        for device in {values.device for values in self._waiting}:
            values = torch.cat([values for values in self._waiting if values.device == device])
            found = (_ordered(values) >> self._shift) - self._first
            self._counts += torch.bincount(found, minlength=self._counts.numel()).cpu()
        self._waiting, self._size = [], 0
        return self._counts


_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
# +infinity's bit pattern, the largest of a number's
_INFINITY = {dtype: int(torch.tensor(float("inf"), dtype=dtype).view(bits)) for dtype, bits in _BITS.items()}


def _ordered(values: Tensor) -> Tensor:
    """Floats (no NaN) -> int64 in the same order; −0 and 0 become one."""
    bits = (values + 0.0).view(_BITS[values.dtype])  # −0 + 0 = 0
    largest = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits.bitwise_xor(largest) + 1, bits).long()


def _to_float(ordered: int, dtype: torch.dtype) -> float:
    """The inverse of `_ordered`."""
    magnitude = torch.tensor(abs(ordered), dtype=_BITS[dtype]).view(dtype).item()
    return magnitude if ordered >= 0 else -magnitude
