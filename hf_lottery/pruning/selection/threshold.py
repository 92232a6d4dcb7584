"""The threshold under which exactly `count` scores lie, found by counting.

A float's bit pattern, read as an integer, sorts as the float does, so the threshold can be found as a radix search
finds it: a pass counts the scores below a bracket and how many inside it fall into each of up to 2^20 bins of bit
patterns; the bin that holds the threshold is the next bracket. A random sample makes the first bracket so narrow that
nearly always one pass is enough; a bracket that misses costs another pass, never exactness. Only counts are kept: any
number of ties is as good as none, and processes that hold a part of the scores each need only add up their counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_lottery.pruning.selection.pieces import Array, Piece, Pieces, number

_BINS = 20  # log2 of the bins of a pass,
_FEW_BINS = 14  # and where scores are few enough that another pass is cheaper than many bins
_SAMPLE = 1 << 17  # scores that the first bracket is guessed from,
_SAMPLE_AT_ONCE = 1 << 15  # and so many of them are fetched in the calling thread
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
        running = np.cumsum(bins)
        if count <= under:
            high = start - 1
        elif count > under + running[-1]:
            low = stop + 1
        else:
            chosen = int(np.searchsorted(running, count - under))
            first = ((start >> shift) + chosen) << shift
            low, high = max(start, first), min(stop, first + (1 << shift) - 1)
            if low == high:
                ties = int(bins[chosen])
                return Threshold(_to_float(low, pieces.dtype), ties, count - under - int(running[chosen]) + ties)
        bracket = low, high


def _guess(pieces: Pieces, total: int, count: int, all_reduce: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """A bracket that holds the threshold unless a sample is out by more than five standard deviations."""
    infinity = _INFINITY[pieces.dtype]
    shift = torch.finfo(pieces.dtype).bits - 16
    bins = _Bins(-infinity >> shift, infinity >> shift, shift)
    generator = np.random.default_rng(0)  # any will do: a guess changes how long it takes, not what is found
    numel_everywhere = int(all_reduce(torch.tensor([sum(pieces.numel.values())])))
    for name in pieces.names:
        size = pieces.numel[name]
        # as many of a tensor as is its share of all, so that every process's sample weighs the same
        wanted = -(-_SAMPLE * size // numel_everywhere)
        for done in range(0, wanted, _SAMPLE_AT_ONCE):
            positions = generator.integers(size, size=min(_SAMPLE_AT_ONCE, wanted - done))
            found = pieces.sample(name, torch.from_numpy(positions))
            bins.add(found[found == found])  # NaN is for the pass to find
    running = np.cumsum(all_reduce(torch.from_numpy(bins.counts())).numpy())
    share = count / total
    rank = share * running[-1]
    slack = 5 * (rank * (1 - share)) ** 0.5 + 5
    first = int(np.searchsorted(running, rank - slack)) if rank > slack else 0
    last = int(np.searchsorted(running, rank + slack))
    lowest = -infinity >> shift
    return max((lowest + first) << shift, -infinity), min(((lowest + last + 1) << shift) - 1, infinity)


def _count(
    pieces: Pieces, start: int, stop: int, log_bins: int, all_reduce: Callable[[Tensor], Tensor], check_nan: bool
) -> tuple[int, np.ndarray, int]:
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
        found = found if isinstance(found, np.ndarray) else found.cpu().numpy()
        with lock:
            under += lows
            bins.add(found)

    pieces.each(work)
    nan = [name in broken for name in pieces.names]
    counts = all_reduce(torch.from_numpy(np.concatenate([np.array([under, *nan], dtype=np.int64), bins.counts()])))
    counts = counts.numpy()
    nan = counts[1 : 1 + len(nan)]
    if nan.any():
        raise ValueError(
            f"a score of '{pieces.names[int(nan.argmax())]}' is NaN; "
            "look for the first step at which the loss or a gradient was not finite"
        )
    return int(counts[0]), counts[1 + len(nan) :], shift


def _has_nan(values: Array, alive: Array | None) -> bool:
    largest = values.max()  # NaN if any is; only then are the bools read
    return bool(largest != largest) and (alive is None or number((values != values) & alive) > 0)


class _Bins:
    """Counts of scores by their ordered integers >> shift, from `first` to `last`; added up in large batches."""

    _BATCH = 1 << 18

    def __init__(self, first: int, last: int, shift: int):
        self._counts = np.zeros(last - first + 1, dtype=np.int64)
        self._first, self._shift = first, shift
        self._waiting, self._size = [], 0

    def add(self, values: np.ndarray) -> None:
        self._waiting.append(values)
        self._size += len(values)
        if self._size >= self._BATCH:
            self.counts()

    def counts(self) -> np.ndarray:
        if self._size:
            found = (_ordered(np.concatenate(self._waiting)) >> self._shift) - self._first
            if self._size < len(self._counts) // 4:
                np.add.at(self._counts, found, 1)
            else:
                self._counts += np.bincount(found, minlength=len(self._counts))
        self._waiting, self._size = [], 0
        return self._counts


_BITS = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
# +infinity's bit pattern, the largest of a number's
_INFINITY = {dtype: int(np.array(np.inf, float).view(_BITS[float])) for dtype, float in _NUMPY.items()}


def _ordered(values: np.ndarray) -> np.ndarray:
    """Floats (no NaN) -> int64 in the same order; −0 and 0 become one."""
    bits = (values + 0).view(_BITS[values.dtype]).astype(np.int64)  # −0 + 0 = 0
    return np.where(bits < 0, np.iinfo(_BITS[values.dtype]).min - bits, bits)


def _to_float(ordered: int, dtype: torch.dtype) -> float:
    """The inverse of `_ordered`."""
    floats = _NUMPY[dtype]
    magnitude = float(np.array(abs(ordered), _BITS[floats]).view(floats))
    return magnitude if ordered >= 0 else -magnitude
