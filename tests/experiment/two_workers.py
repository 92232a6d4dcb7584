"""Two processes that work on one output folder."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def by_two_workers(work: Callable[[Path, list[str]], None], root: Path) -> Counter:
    """How often each network was started, after two processes have called `work(root, started)` side by side."""
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        started = manager.list()
        workers = [context.Process(target=work, args=(root, started)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        return Counter(started)
