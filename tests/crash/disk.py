"""Every operation of this process on the files below a folder, seen one by one before it is done.

`Disk(root, plan).watch()` puts functions in place of `open`, `os.replace` and the others through which Python code
changes files, and of `torch.save` and safetensors' writer, whose native code is replaced by the same writes in Python
(native.py). Each calls `plan.at(operation, do, half)` instead of doing its work, so that a plan can count operations,
kill the process before, in the middle of or after one, or let it fail. Files are opened unbuffered at the bottom:
what is one operation here is one system call without us. Files outside of the folder are left alone.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

REAL = {
    name: getattr(os, name)
    for name in (
        "open", "write", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "fdatasync", "truncate",
        "ftruncate", "sendfile", "copy_file_range", "link", "symlink",
    )
}  # fmt: skip
real_open = io.open
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Operation:
    """One change of the disk.

    Args:
        kind: open (creates or empties a file), write, replace, unlink, mkdir, rmdir, fsync or truncate.
        path: absolute.
        other: for replace, where it goes.
        size: for write, the bytes.
    """

    kind: str
    path: str
    other: str = ""
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" -> {self.other}" if self.other else "")


class Plan(Protocol):
    """What happens at an operation."""

    def at(self, operation: Operation, do: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        """Do the operation by `do` and return its result, or something else; `half` does half of a write."""


class Disk:
    """The operations of this process, and of those that it forks, below a folder.

    Args:
        root: the folder.
        plan: is told of each operation.
    """

    def __init__(self, root: str | os.PathLike, plan: Plan):
        self.root, self.plan = os.path.abspath(root), plan

    def holds(self, path: str | None) -> bool:
        """Whether the path is the folder or below it."""
        return path is not None and (path == self.root or path.startswith(self.root + os.sep))

    def watch(self) -> None:
        """See everything from now on, for as long as this process lives."""
        from tests.crash import native

        builtins.open = io.open = self.open
        os.open, os.write = self._os_open, self._os_write
        os.replace = os.rename = self._moving("replace", REAL["replace"])
        os.link = self._moving("link", REAL["link"])
        os.symlink = self._moving("symlink", REAL["symlink"])
        os.unlink = os.remove = self._one("unlink", REAL["unlink"])
        os.mkdir, os.rmdir = self._one("mkdir", REAL["mkdir"]), self._one("rmdir", REAL["rmdir"])
        os.fsync, os.fdatasync = self._one("fsync", REAL["fsync"]), self._one("fsync", REAL["fdatasync"])
        os.truncate, os.ftruncate = self._one("truncate", REAL["truncate"]), self._one("truncate", REAL["ftruncate"])
        os.sendfile, os.copy_file_range = self._refused, self._refused
        native.watch(self)

    # --- files of Python

    def open(
        self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
    ):  # the signature of the built-in `open`
        path = path_of(file) if set(mode) & set("wax+") else None
        if not self.holds(path):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw_mode = mode.replace("b", "").replace("t", "")

        def construct() -> _Raw:
            return _Raw(file, raw_mode, closefd, opener)

        creates = not isinstance(file, int) and opener is None and ("w" in mode or not os.path.exists(path))
        raw = self.plan.at(Operation("open", path), construct, None) if creates else construct()
        raw.disk, raw.path = self, path
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering in (-1, 1) else buffering
        binary = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if "b" in mode:
            return binary
        text = io.TextIOWrapper(binary, encoding, errors, newline, buffering == 1)
        text.mode = mode
        return text

    def write(self, path: str, data, write: Callable[[Any], int]) -> int:
        """One write of a raw file."""
        view = memoryview(data).cast("B")
        operation = Operation("write", path, size=len(view))
        return self.plan.at(operation, lambda: write(view), lambda: write(view[: len(view) // 2]))

    def _os_open(self, path, flags, mode=0o777, *, dir_fd=None):
        where = path_of(path, dir_fd)
        if not flags & WRITING or not self.holds(where) or (os.path.exists(where) and not flags & os.O_TRUNC):
            return REAL["open"](path, flags, mode, dir_fd=dir_fd)
        return self.plan.at(Operation("open", where), lambda: REAL["open"](path, flags, mode, dir_fd=dir_fd), None)

    def _os_write(self, fd, data):
        path = path_of(fd)
        if not self.holds(path):
            return REAL["write"](fd, data)
        return self.write(path, data, lambda part: REAL["write"](fd, part))

    # --- all others

    def _one(self, kind: str, real: Callable) -> Callable:
        """A function with one path, or an open file, as its first argument."""

        idle = {"mkdir": True, "unlink": False, "rmdir": False}.get(kind)  # there is nothing to make, or to remove

        def watched(path, *args, dir_fd=None, **kwargs):
            where = path_of(path, dir_fd)
            if dir_fd is not None:
                kwargs["dir_fd"] = dir_fd
            if not self.holds(where) or os.path.lexists(where) is idle:
                return real(path, *args, **kwargs)
            return self.plan.at(Operation(kind, where), lambda: real(path, *args, **kwargs), None)

        return watched

    def _moving(self, kind: str, real: Callable) -> Callable:
        """A function with a source and a destination."""

        def watched(source, destination, *args, **kwargs):
            old, new = path_of(source, kwargs.get("src_dir_fd")), path_of(destination, kwargs.get("dst_dir_fd"))
            if not self.holds(old) and not self.holds(new):
                return real(source, destination, *args, **kwargs)
            return self.plan.at(Operation(kind, old, new), lambda: real(source, destination, *args, **kwargs), None)

        return watched

    @staticmethod
    def _refused(*args, **kwargs):
        """Copying inside the kernel: shutil then copies by read and write, which is seen."""
        import errno

        raise OSError(errno.ENOTSOCK, "not here")


class _Raw(io.FileIO):
    """A file whose writes are seen."""

    disk: Disk
    path: str

    def write(self, data) -> int:
        return self.disk.write(self.path, data, super().write)

    def truncate(self, size=None) -> int:
        real = super().truncate
        return self.disk.plan.at(Operation("truncate", self.path), lambda: real(size), None)


def path_of(file, dir_fd: int | None = None) -> str | None:
    """The absolute path of a path or an open file; None: it has none."""
    if isinstance(file, int):
        try:
            return os.readlink(f"/proc/self/fd/{file}")
        except OSError:
            return None
    try:
        path = os.fsdecode(file)
    except TypeError:
        if hasattr(file, "fileno"):  # os.fsync takes file objects
            return path_of(file.fileno())
        return None
    if dir_fd is not None and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
    return os.path.abspath(path)
