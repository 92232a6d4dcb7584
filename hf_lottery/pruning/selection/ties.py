"""Ties: of the weights whose score equals the threshold, the first ones by (name, flat index) are removed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hf_lottery.pruning.selection.chunks import Array, Chunk, Chunks, number

_BINS = 16  # log2 of the number of bins in which positions are counted


def last_ties(
    chunks: Chunks,
    value: float,
    remove: int,
    all_reduce: Callable[[Tensor], Tensor],
    whole: dict[str, int],
    offsets: dict[str, int],
) -> dict[str, int]:
    """Find the last of the first `remove` alive scores that equal `value`, in each tensor.

    Args:
        chunks: this process's scores.
        value: the threshold.
        remove: more than 0 and fewer than there are ties.
        all_reduce: adds an int64 tensor up over all processes.
        whole: name -> weights of the whole tensor, over all processes.
        offsets: name -> flat index in the whole tensor of this process's first weight.

    Returns:
        name -> flat index, in this process's part, of the last tie that is removed: below 0 for none, the
        part's size or more for all.
    """
    ties = Counter()
    lock = threading.Lock()

    def count(chunk: Chunk) -> None:
        found = number(_equal(chunk, value))
        with lock:
            ties[chunk.name] += found

    chunks.each(count)
    result = dict.fromkeys(chunks.names, -1)
    counts = all_reduce(torch.tensor([ties[name] for name in chunks.names], dtype=torch.int64)).tolist()
    for name, found in zip(chunks.names, counts, strict=True):
        if found > remove:
            result[name] = (
                _position(chunks, name, value, remove, all_reduce, whole[name], offsets[name]) - offsets[name]
            )
            break
        result[name], remove = chunks.numel[name], remove - found
    return result


def _position(chunks, name, value, remove, all_reduce, whole: int, offset: int) -> int:
    """Flat index, in the whole tensor, of the `remove`-th tie of one tensor; −1 if `remove` is 0.

    A radix search as for the threshold, over positions instead of bit patterns.
    """
    if remove == 0:
        return -1
    start, shift = 0, max(0, whole.bit_length() - _BINS)
    while True:
        bins = np.zeros(1 << _BINS, dtype=np.int64)
        lock = threading.Lock()

        def count(chunk: Chunk, start=start, shift=shift, bins=bins, lock=lock) -> None:
            begin = offset + chunk.start - start
            if begin + len(chunk.values) <= 0 or begin >= 1 << (shift + _BINS):
                return
            equal = _equal(chunk, value)
            places = np.flatnonzero(equal if isinstance(equal, np.ndarray) else equal.cpu().numpy()) + begin
            places = places[(places >= 0) & (places < 1 << (shift + _BINS))] >> shift
            found = np.bincount(places)
            with lock:
                bins[: len(found)] += found

        chunks.each(count, [name])
        running = np.cumsum(all_reduce(torch.from_numpy(bins)).numpy())
        chosen = int(np.searchsorted(running, remove))
        remove -= int(running[chosen - 1]) if chosen else 0
        start += chosen << shift
        if shift == 0:
            return start
        shift = max(0, shift - _BINS)


def _equal(chunk: Chunk, value: float) -> Array:
    equal = chunk.values == value
    return equal if chunk.alive is None else equal & chunk.alive
