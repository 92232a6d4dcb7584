from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-for-bit comparisons need the same number of threads, and tiny networks are faster with one."""
    torch.set_num_threads(1)
