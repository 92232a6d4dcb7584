"""Pieces: the scores of many tensors in cache-sized runs, read where they lie by all threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# On the CPU a piece is numpy's, whose comparisons are several times faster than torch's and run in the calling thread.
Array = np.ndarray | Tensor

# Weights a run: on the CPU its temporaries stay in the cache; on a GPU starting a kernel costs little beside its work.
CPU_RUN = 1 << 17
CUDA_RUN = 1 << 24


@dataclass(frozen=True)
class Piece:
    """A run of one tensor's weights.

    Args:
        name: of the tensor.
        start: flat index of the run's first weight.
        values: 1-D, float32 or float64: the scores as they compare. numpy's on the CPU, torch's elsewhere.
        alive: 1-D bools of the same kind, or None where all are alive.
    """

    name: str
    start: int
    values: Array
    alive: Array | None


class Pieces:
    """The scores of some tensors and which of them are alive.

    Args:
        scores: name -> score of any float dtype. Read a tensor at a time, once a pass, so that a mapping may make its
            tensors when they are asked for.
        alive: name -> bool tensor of the same shape.
        dense: names of tensors that are alive throughout, whose bools need not be read.
        key: elementwise function applied to every run.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        alive: Mapping[str, Tensor],
        dense: set[str],
        key: Callable[[Tensor], Tensor] | None,
    ):
        self.names = sorted(scores)
        self.numel = {name: alive[name].numel() for name in self.names}
        self._scores, self._alive, self._dense, self._key = scores, alive, dense, key
        # every float dtype but float64 fits into float32 exactly
        doubles = any(self._apply(scores[name].detach().new_empty(0)).dtype == torch.float64 for name in self.names)
        self.dtype = torch.float64 if doubles else torch.float32
        self._on_cpu = all(scores[name].is_cpu for name in self.names)

    def each(self, work: Callable[[Piece], None], names: list[str] | None = None) -> None:
        """Call `work` with every run: in the calling thread if they are few, else from many threads in no fixed order.

        Args:
            work: must not write what another call reads, but under a lock.
            names: of these tensors alone.
        """
        names = self.names if names is None else names
        runs = ((name, *run) for name in names for run in self._runs(name))
        lock, inference = threading.Lock(), torch.is_inference_mode_enabled()

        def worker():
            with torch.inference_mode(inference), torch.no_grad():  # both are a thread's own
                while True:
                    with lock:
                        run = next(runs, None)
                    if run is None:
                        return
                    work(self._piece(*run))

        threads = torch.get_num_threads() if self._on_cpu else 1
        if threads == 1 or sum(self.numel[name] for name in names) <= 4 * CPU_RUN:
            worker()
            return
        try:
            # every worker a thread of its own, that torch does not split again
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for future in [pool.submit(worker) for _ in range(threads)]:
                    future.result()
        finally:
            torch.set_num_threads(threads)  # the setting is also the process's

    def sample(self, name: str, positions: Tensor) -> np.ndarray:
        """The alive among the values at these flat indices (int64)."""
        scores = self._scores[name].detach()
        positions = positions.to(scores.device)
        values = self._apply(scores.take(positions)).to(self.dtype)
        if name not in self._dense:
            alive = self._alive[name]
            values = values[alive.take(positions.to(alive.device)).to(values.device)]
        return values.cpu().numpy()

    def _apply(self, scores: Tensor) -> Tensor:
        return scores if self._key is None else self._key(scores)

    def _piece(self, name: str, start: int, scores: Tensor, alive: Tensor | None) -> Piece:
        values = self._apply(scores).to(self.dtype)
        if values.is_cpu:
            return Piece(name, start, values.numpy(), None if alive is None else alive.numpy())
        return Piece(name, start, values, alive)

    def _runs(self, name: str) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        scores = self._scores[name].detach()
        alive = None if name in self._dense else self._alive[name].contiguous().view(-1)
        for start, run in _runs(scores, CPU_RUN if scores.is_cpu else CUDA_RUN):
            yield start, run, None if alive is None else alive[start : start + run.numel()].to(run.device)


def _runs(tensor: Tensor, size: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """(flat index, 1-D run of at most `size` elements) in C order; only runs of a non-contiguous tensor are copies."""
    if tensor.is_contiguous():
        flat = tensor.view(-1)
        for index in range(0, flat.numel(), size):
            yield start + index, flat[index : index + size]
    elif tensor.numel() <= size:
        yield start, tensor.reshape(-1)
    else:
        inner = tensor.numel() // tensor.shape[0]
        rows = max(1, size // inner)
        for row in range(0, tensor.shape[0], rows):
            part = tensor[row : row + rows]
            yield from _runs(part if len(part) > 1 else part[0], size, start + row * inner)


def number(bools: Array) -> int:
    """How many are True."""
    return int(np.count_nonzero(bools)) if isinstance(bools, np.ndarray) else int(bools.count_nonzero())


def tensor(array: Array) -> Tensor:
    """The same memory as a tensor."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array
