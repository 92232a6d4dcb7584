"""What happens at one operation of one process: it is only counted, the process is killed, or the operation fails."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import psutil

from tests.crash.disk import REAL, Operation

MOMENTS = ("before", "middle", "after")
FAULTS = ("full", "io", "short", "read-only")

name_of_process = "main"  # `worker-0`, `rank-1`, ...: set in a process after it was forked
main_process = 0  # its id: all others are below it


class Count:
    """Does every operation, and writes it as a line of JSON to `log` (outside of the folder that is watched)."""

    def __init__(self, log: str | os.PathLike | None = None):
        self.log = log

    def at(self, operation: Operation, do: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        if self.log is not None:
            say(self.log, json.dumps([name_of_process, operation.kind, operation.path, operation.other]))
        return do()


class Kill:
    """Kills at the N-th operation of a process.

    Args:
        number: N, from 1.
        moment: one of MOMENTS. `middle` of what is no write is `before`.
        process: the name of the process whose operations count.
        everyone: kill all processes of the run, not this one alone.
        log: is told at which operation it was.
    """

    def __init__(self, number: int, moment: str, process: str, everyone: bool, log: str | os.PathLike):
        self.number, self.moment, self.process, self.everyone, self.log = number, moment, process, everyone, log
        self.seen = 0

    def at(self, operation: Operation, do: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        if name_of_process != self.process:
            return do()
        self.seen += 1
        if self.seen != self.number:
            return do()
        if self.moment == "middle" and half is not None:
            half()
        if self.moment == "after":
            do()
        say(self.log, operation)
        die(self.everyone)


class Fault:
    """Lets an operation fail, and those after it as a real disk would.

    Args:
        number: the operation, from 1.
        fault: `full`: from there on no write succeeds and no file is made, but files can be removed; `short`: the
            same, and half of the write is on the disk; `io`: that one operation alone fails; `read-only`: from
            there on nothing can be changed.
        log: is told at which operation it was.
    """

    def __init__(self, number: int, fault: str, log: str | os.PathLike):
        self.number, self.fault, self.log = number, fault, log
        self.seen = 0

    def at(self, operation: Operation, do: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        self.seen += 1
        if self.seen < self.number:
            return do()
        if self.seen == self.number:
            say(self.log, operation)
            if self.fault == "short" and half is not None:
                half()
        if self.fault == "io":
            if self.seen == self.number:
                raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)
            return do()
        if self.fault == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), operation.path)
        if operation.kind in ("unlink", "rmdir", "truncate", "replace", "fsync"):
            return do()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)


def say(log: str | os.PathLike, line: object) -> None:
    """Write a line to a file that is not watched."""
    fd = REAL["open"](os.fspath(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    REAL["write"](fd, f"{line}\n".encode())
    os.close(fd)


def die(everyone: bool = False) -> None:
    """The end of this process, or of the main one and all that it started, as by `kill -9`."""
    if everyone:
        os.kill(main_process, signal.SIGSTOP)  # it must not see its children die
        others = psutil.Process(main_process).children(recursive=True)
        for process in [psutil.Process(main_process), *others]:
            if process.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not kill")
