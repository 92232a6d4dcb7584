"""Fixtures that several tests share."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import contextmanager

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-for-bit comparisons need the same number of threads, and tiny networks are faster with one."""
    torch.set_num_threads(1)


@pytest.fixture
def traced_peak():
    """`with traced_peak(at_most=n)`: Python and numpy hold no more than n bytes more in the block."""

    @contextmanager
    def check(at_most: int):
        tracemalloc.start()
        try:
            yield
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= at_most

    return check
