"""Ties: of the weights whose score is the threshold itself, the first by (name, flat index) go."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hf_lottery.pruning.selection.pieces import Array, Piece, Pieces, number

_BINS = 16  # log2 of the bins that positions are counted in


def last_ties(
    pieces: Pieces,
    value: float,
    remove: int,
    all_reduce: Callable[[Tensor], Tensor],
    whole: dict[str, int],
    offsets: dict[str, int],
) -> dict[str, int]:
    """Where the first `remove` of the alive scores that equal `value` end.

    Args:
        pieces: this process's scores.
        value: the threshold.
        remove: more than 0 and fewer than there are ties.
        all_reduce: adds an int64 tensor up over all processes.
        whole: name -> weights of the whole tensor, over all processes.
        offsets: name -> flat index in the whole tensor of this process's first weight.

    Returns:
        name -> flat index, in this process's part, of the last tie to go: below 0 for none, large for all.
    """
    ties = Counter()
    lock = threading.Lock()

    def count(piece: Piece) -> None:
        found = number(_equal(piece, value))
        with lock:
            ties[piece.name] += found

    pieces.each(count)
    result = dict.fromkeys(pieces.names, -1)
    counts = all_reduce(torch.tensor([ties[name] for name in pieces.names], dtype=torch.int64)).tolist()
    for name, found in zip(pieces.names, counts, strict=True):
        if found > remove:
            result[name] = (
                _position(pieces, name, value, remove, all_reduce, whole[name], offsets[name]) - offsets[name]
            )
            break
        result[name], remove = pieces.numel[name], remove - found
    return result


def _position(pieces, name, value, remove, all_reduce, whole: int, offset: int) -> int:
    """Flat index, in the whole tensor, of the `remove`-th tie of one tensor; −1 if `remove` is 0.

    A radix search as for the threshold, over positions instead of bit patterns.
    """
    if remove == 0:
        return -1
    start, shift = 0, max(0, whole.bit_length() - _BINS)
    while True:
        bins = np.zeros(1 << _BINS, dtype=np.int64)
        lock = threading.Lock()

        def count(piece: Piece, start=start, shift=shift, bins=bins, lock=lock) -> None:
            begin = offset + piece.start - start
            if begin + len(piece.values) <= 0 or begin >= 1 << (shift + _BINS):
                return
            equal = _equal(piece, value)
            places = np.flatnonzero(equal if isinstance(equal, np.ndarray) else equal.cpu().numpy()) + begin
            places = places[(places >= 0) & (places < 1 << (shift + _BINS))] >> shift
            found = np.bincount(places)
            with lock:
                bins[: len(found)] += found

        pieces.each(count, [name])
        running = np.cumsum(all_reduce(torch.from_numpy(bins)).numpy())
        chosen = int(np.searchsorted(running, remove))
        remove -= int(running[chosen - 1]) if chosen else 0
        start += chosen << shift
        if shift == 0:
            return start
        shift = max(0, shift - _BINS)


def _equal(piece: Piece, value: float) -> Array:
    equal = piece.values == value
    return equal if piece.alive is None else equal & piece.alive
