"""Chunks: the scores of many tensors in parts of cache size, read in place by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# On the CPU a chunk is numpy's, whose comparisons are several times faster than torch's and run in the calling thread.
Array = np.ndarray | Tensor

# Weights a chunk. CPU: small enough that temporaries fit the cache. GPU: so large that starting kernels costs little.
CPU_CHUNK = 1 << 17
CUDA_CHUNK = 1 << 24


@dataclass(frozen=True)
class Chunk:
    """Consecutive weights of one tensor, in C order.

    Args:
        name: of the tensor.
        start: flat index of the chunk's first weight.
        values: 1-D, float32 or float64: the scores after `key`. A numpy array on the CPU, a tensor elsewhere.
        alive: 1-D bools of the same kind, or None where all are alive.
    """

    name: str
    start: int
    values: Array
    alive: Array | None


class Chunks:
    """The scores of some tensors and which of them are alive.

    Args:
        scores: name -> score of any float dtype. Each tensor is read once a pass, one after another, so a mapping may
            compute its tensors on access.
        alive: name -> bool tensor of the same shape.
        dense: names of tensors whose weights are all alive, so that their bools are not read.
        key: elementwise function applied to every chunk.
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

    def each(self, work: Callable[[Chunk], None], names: list[str] | None = None) -> None:
        """Call `work` with every chunk: in the calling thread for few weights, else from several threads in any order.

        Args:
            work: must hold a lock while it writes what another call reads or writes.
            names: only the chunks of these tensors; None: of all.
        """
        names = self.names if names is None else names
        chunks = ((name, *chunk) for name in names for chunk in self._chunks(name))
        lock, inference = threading.Lock(), torch.is_inference_mode_enabled()

        def worker():
            with torch.inference_mode(inference), torch.no_grad():  # both are set per thread
                while True:
                    with lock:
                        chunk = next(chunks, None)
                    if chunk is None:
                        return
                    work(self._chunk(*chunk))

        threads = torch.get_num_threads() if self._on_cpu else 1
        if threads == 1 or sum(self.numel[name] for name in names) <= 4 * CPU_CHUNK:
            worker()
            return
        try:
            # one thread a worker: torch must not start more threads inside
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for future in [pool.submit(worker) for _ in range(threads)]:
                    future.result()
        finally:
            torch.set_num_threads(threads)  # a worker's set_num_threads changes it for the whole process

    def sample(self, name: str, positions: Tensor) -> np.ndarray:
        """The values of the alive weights among these flat indices (int64)."""
        scores = self._scores[name].detach()
        positions = positions.to(scores.device)
        values = self._apply(scores.take(positions)).to(self.dtype)
        if name not in self._dense:
            alive = self._alive[name]
            values = values[alive.take(positions.to(alive.device)).to(values.device)]
        return values.cpu().numpy()

    def _apply(self, scores: Tensor) -> Tensor:
        return scores if self._key is None else self._key(scores)

    def _chunk(self, name: str, start: int, scores: Tensor, alive: Tensor | None) -> Chunk:
        values = self._apply(scores).to(self.dtype)
        if values.is_cpu:
            return Chunk(name, start, values.numpy(), None if alive is None else alive.numpy())
        return Chunk(name, start, values, alive)

    def _chunks(self, name: str) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        scores = self._scores[name].detach()
        alive = None if name in self._dense else self._alive[name].contiguous().view(-1)
        for start, chunk in _chunks(scores, CPU_CHUNK if scores.is_cpu else CUDA_CHUNK):
            yield start, chunk, None if alive is None else alive[start : start + chunk.numel()].to(chunk.device)


def _chunks(tensor: Tensor, size: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """(flat index, 1-D tensor of at most `size` elements) in C order: views, or copies if not contiguous."""
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
            yield from _chunks(part if len(part) > 1 else part[0], size, start + row * inner)


def number(bools: Array) -> int:
    """How many are True."""
    return int(np.count_nonzero(bools)) if isinstance(bools, np.ndarray) else int(bools.count_nonzero())


def tensor(array: Array) -> Tensor:
    """A tensor that shares the array's memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array
