"""Processes with everything imported: forked, watched, ended by a plan, and waited for with all that they started."""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.crash import plans
from tests.crash.disk import Disk, Plan

LONGEST_SECONDS = 180  # a process that takes longer hangs
HUNG = -1000
_SUBREAPER = 36  # prctl: orphans of our children become our children, so that they can be waited for
_adopts = False
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        status: the exit status; minus the signal's number if it was killed; HUNG if it took too long.
        output: what it printed on stdout and stderr.
    """

    status: int
    output: str

    @property
    def killed(self) -> bool:
        """Whether it was ended by SIGKILL: by its plan, since nobody else sends it."""
        return self.status == -signal.SIGKILL


def run(work: Callable[[Path], None], folder: Path, plan: Plan, scratch: Path, wait_for_all: bool = True) -> Ended:
    """Fork a process that does `work(folder)` under a plan, as if it were the main program; wait for its end.

    Args:
        work: an exception that it raises is printed with its traceback, and the exit status is 1.
        folder: what the plan watches. Also the child's TMPDIR is beside it, so that leftovers can be counted.
        plan: see `disk.Plan`.
        scratch: a folder for what it prints.
        wait_for_all: wait also for processes that it started and that outlive it.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    printed = scratch / f"output-{time.monotonic_ns()}"

    def begin() -> None:
        os.setsid()
        plans.main_process = os.getpid()
        out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for standard in (1, 2):
            os.dup2(out, standard)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
        unlike_any_other_process()
        Disk(folder, plan).watch()

    status = wait(_forked(begin, lambda: work(folder)))
    if wait_for_all:
        wait_for_orphans()
    return Ended(status, printed.read_text(errors="replace"))


def fork(work: Callable[[], None], name: str, own_session: bool = False) -> int:
    """From a watched process: start another one, watched too, under a name of its own; returns its id."""

    def begin() -> None:
        plans.name_of_process = name
        if own_session:
            os.setsid()
        unlike_any_other_process()

    return _forked(begin, work)


def _forked(begin: Callable[[], None], work: Callable[[], None]) -> int:
    """Start a process that prepares itself, works, and ends with what `outcome` says of it; returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            begin()
            status = outcome(work)
        finally:
            leave(status)
    return child


def outcome(work: Callable[[], None]) -> int:
    """Do the work as Python does a main program; returns the exit status."""
    try:
        work()
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
            return 1
        return stopped.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status: int) -> None:
    """End this process without running what its parent registered for its own end."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def unlike_any_other_process() -> None:
    """Random numbers that no other process had: a result must not stand on what was left in the generators."""
    import numpy as np
    import torch

    seed = int.from_bytes(os.urandom(4), "big")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def wait(child: int) -> int:
    """The exit status of a process; minus the signal if it was killed. One that hangs is killed."""
    ended = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < ended:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def wait_for_orphans() -> None:
    """Wait until no process is left that a run started; after LONGEST_SECONDS they are killed.

    Without `adopt_orphans` they are not ours to wait for, and other children of this process may live on.
    """
    if not _adopts:
        return
    ended = time.monotonic() + LONGEST_SECONDS
    while True:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not done:
            if time.monotonic() > ended:
                for child in psutil.Process().children(recursive=True):
                    child.kill()
            time.sleep(0.01)


def adopt_orphans() -> None:
    """Make this process the parent of all processes below it that lose theirs (Linux)."""
    global _adopts
    _adopts = True
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def preload(works: Sequence[Callable[[Path], None]], scratch: Path) -> None:
    """Import here what each `work` imports on its way, so that processes that are forked later need not.

    Each is done once in a forked process, whose list of modules is taken over.
    """
    for number, work in enumerate(works):
        names = scratch / f"modules-{number}"

        def done(folder: Path, work=work, names=names) -> None:
            try:
                work(folder)
            finally:
                with open(names, "wb") as file:
                    pickle.dump(list(sys.modules), file)

        ended = run(done, scratch / f"preload-{number}", plans.Count(), scratch)
        if ended.status:
            raise RuntimeError(f"an undisturbed run failed:\n{ended.output}")
        for name in pickle.loads(names.read_bytes()):
            if name not in sys.modules:
                try:
                    importlib.import_module(name)
                except Exception:
                    continue  # a module that is made while running, or a submodule of one
