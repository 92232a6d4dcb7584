"""The threshold: the `count`-th lowest score, found by counting, exactly and without sorting.

A float's bit pattern, read as an integer, sorts as the float does, so a radix search finds the threshold. A bracket is
a range of these integers. A pass counts the scores below the bracket, and the scores inside it in up to 2^20 bins; the
bin that holds the threshold is the next bracket. The first bracket is guessed from a random sample, so narrow that one
pass is nearly always enough; if the guess is wrong, another pass follows and the result is still exact. Memory holds
only counts, so ties need no special treatment, and processes that each hold a part of the scores add up their counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_lottery.pruning.selection.chunks import Array, Chunk, Chunks, number

_BINS = 20  # log2 of the number of bins of a pass
_FEW_BINS = 14  # the same up to _COUNT_ALL scores, where another pass costs less than more bins
_SAMPLE = 1 << 17  # how many scores the first bracket is guessed from
_SAMPLE_AT_ONCE = 1 << 15  # how many of these are read at a time
_COUNT_ALL = 1 << 20  # up to this many scores no sample is taken: it would save nothing


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


def find_threshold(chunks: Chunks, total: int, count: int, all_reduce: Callable[[Tensor], Tensor]) -> Threshold:
    """Find the `count`-th lowest alive score.

    Args:
        chunks: this process's scores.
        total: how many scores are alive, over all processes.
        count: 1 <= count <= total.
        all_reduce: adds an int64 tensor up over all processes.

    Raises:
        ValueError: a score is NaN.

    Source: radix selection; the bracket from a sample is Floyd & Rivest 1975 (SELECT, CACM algorithm 489).
    """
    infinity = _INFINITY[chunks.dtype]
    low, high = -infinity, infinity  # the threshold is in [low, high], as ordered integers
    many = total > _COUNT_ALL
    bracket = _guess(chunks, total, count, all_reduce) if many else (low, high)
    first_pass = True
    while True:
        start, stop = bracket
        under, bins, shift = _count(
            chunks, start, stop, _BINS if many else _FEW_BINS, all_reduce, check_nan=first_pass
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
                return Threshold(_to_float(low, chunks.dtype), ties, count - under - int(running[chosen]) + ties)
        bracket = low, high


def _guess(chunks: Chunks, total: int, count: int, all_reduce: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """A bracket that holds the threshold, unless the sample deviates by more than five standard deviations."""
    infinity = _INFINITY[chunks.dtype]
    shift = torch.finfo(chunks.dtype).bits - 16
    bins = _Bins(-infinity >> shift, infinity >> shift, shift)
    generator = np.random.default_rng(0)  # any seed is right: it changes how long the search takes, not what it finds
    numel_everywhere = int(all_reduce(torch.tensor([sum(chunks.numel.values())])))
    for name in chunks.names:
        size = chunks.numel[name]
        # in proportion to the tensor's size, so that all processes sample at the same density
        wanted = -(-_SAMPLE * size // numel_everywhere)
        for done in range(0, wanted, _SAMPLE_AT_ONCE):
            positions = generator.integers(size, size=min(_SAMPLE_AT_ONCE, wanted - done))
            found = chunks.sample(name, torch.from_numpy(positions))
            bins.add(found[found == found])  # the pass reports NaN
    running = np.cumsum(all_reduce(torch.from_numpy(bins.counts())).numpy())
    share = count / total
    rank = share * running[-1]
    slack = 5 * (rank * (1 - share)) ** 0.5 + 5
    first = int(np.searchsorted(running, rank - slack)) if rank > slack else 0
    last = int(np.searchsorted(running, rank + slack))
    lowest = -infinity >> shift
    return max((lowest + first) << shift, -infinity), min(((lowest + last + 1) << shift) - 1, infinity)


def _count(
    chunks: Chunks, start: int, stop: int, log_bins: int, all_reduce: Callable[[Tensor], Tensor], check_nan: bool
) -> tuple[int, np.ndarray, int]:
    """(alive scores below `start`, counts of those in [start, stop] by bins of 2^shift ordered integers, shift)."""
    shift = max(0, (stop - start).bit_length() - log_bins)
    start_value, stop_value = _to_float(start, chunks.dtype), _to_float(stop, chunks.dtype)
    under, broken = 0, set()
    bins = _Bins(start >> shift, stop >> shift, shift)
    lock = threading.Lock()

    def work(chunk: Chunk) -> None:
        nonlocal under
        values, alive = chunk.values, chunk.alive
        if check_nan and _has_nan(values, alive):
            broken.add(chunk.name)
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

    chunks.each(work)
    nan = [name in broken for name in chunks.names]
    counts = all_reduce(torch.from_numpy(np.concatenate([np.array([under, *nan], dtype=np.int64), bins.counts()])))
    counts = counts.numpy()
    nan = counts[1 : 1 + len(nan)]
    if nan.any():
        raise ValueError(
            f"a score of '{chunks.names[int(nan.argmax())]}' is NaN; "
            "look for the first step at which the loss or a gradient was not finite"
        )
    return int(counts[0]), counts[1 + len(nan) :], shift


def _has_nan(values: Array, alive: Array | None) -> bool:
    largest = values.max()  # NaN if any value is; only then are the bools read
    return bool(largest != largest) and (alive is None or number((values != values) & alive) > 0)


class _Bins:
    """How many scores have each value of (ordered integer >> shift), from `first` to `last`; counted in batches."""

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
# the bit pattern of +infinity, the largest of all floats but NaN
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
