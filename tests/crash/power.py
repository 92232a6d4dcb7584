"""A power cut: what was not fsynced is gone, data and names alike.

POSIX promises no more than this: the bytes of a file are on the disk after an fsync of the file, and its name (after
it was made, moved or removed) after an fsync of the folder that the name is in. `PowerCut` keeps a journal of both;
at the cut it sets the folder to a state that the disk may be in, and kills the process.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lottery.layout import RESULT_FILE, TRAINED_FILE
from hf_lottery.mask import MASK_FILE
from tests.crash.disk import REAL, Operation, real_open
from tests.crash.plans import die, say

LOSSES = ("all", "data", "some")
OF_A_NETWORK = (RESULT_FILE, TRAINED_FILE, MASK_FILE)


@dataclass
class _File:
    """A file, whatever its name.

    Args:
        synced: what of it is surely on the disk; None: it was made since, and never fsynced.
    """

    synced: bytes | None


@dataclass
class _Change:
    """One name that was made or removed in a folder.

    Args:
        folder: the folder.
        name: the name in it.
        what: the file that it now names; True: a folder; None: it is gone.
    """

    folder: str
    name: str
    what: _File | bool | None
    synced: bool = False


class PowerCut:
    """Cuts the power at the N-th operation of the process.

    Args:
        root: the folder; all that it holds when the process starts is on the disk.
        number: N, from 1; the operation itself is not done.
        losses: `all`: nothing that was not fsynced is on the disk; `data`: all names are, but not the bytes of files
            that were not fsynced; `some`: of the names in each folder the first few are, and of such files a part.
        seed: which few.
        log: is told at which operation it was, and, a line each, which files of finished networks are lost.
    """

    def __init__(self, root: Path, number: int, losses: str, seed: str, log: Path):
        self.root, self.number, self.losses, self.log = os.path.abspath(root), number, losses, log
        self.draw = random.Random(seed)
        self.seen = 0
        self.start: dict[str, _File | bool] = {}
        self.now: dict[str, _File | bool] = {}
        self.changes: list[_Change] = []
        self._read_start()

    def at(self, operation: Operation, do: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        self.seen += 1
        if self.seen == self.number:
            say(self.log, operation)
            self._lose(operation)
            die()
        existed = os.path.lexists(operation.path)
        result = do()
        self._note(operation, existed)
        return result

    def _read_start(self) -> None:
        """What is there when the process starts."""
        for folder, _, names in os.walk(self.root):
            self.start[folder] = True
            for name in names:
                path = os.path.join(folder, name)
                self.start[path] = _File(_bytes(path))
        self.now = dict(self.start)

    def _note(self, operation: Operation, existed: bool) -> None:
        kind, path = operation.kind, operation.path
        if kind == "open" and not existed:
            self._name(path, _File(None))
        elif kind == "mkdir":
            self._name(path, True)
        elif kind in ("unlink", "rmdir"):
            self._name(path, None)
        elif kind == "replace":
            self._move(path, operation.other)
        elif kind == "fsync":
            entry = self.now.get(path)
            if isinstance(entry, _File):
                entry.synced = _bytes(path)
            for change in self.changes:
                if entry is True and change.folder == path:
                    change.synced = True

    def _move(self, old: str, new: str) -> None:
        below = [path for path in self.now if path.startswith(old + os.sep)]
        entry = self.now[old]
        for path in below:  # a folder takes what is in it along
            self.now[new + path[len(old) :]] = self.now.pop(path)
        self._name(new, entry)
        self._name(old, None)

    def _name(self, path: str, what: _File | bool | None) -> None:
        folder, name = os.path.split(path)
        outside = path == self.root  # the folder above is not watched, so its fsync is not seen
        self.changes.append(_Change(folder, name, what, synced=outside))
        if what is None:
            self.now.pop(path, None)
        else:
            self.now[path] = what

    def _lose(self, operation: Operation) -> None:
        """Set the folder to what is on the disk after the cut."""
        alive = {path: _bytes(path) for path, entry in self.now.items() if entry is not True}
        whole = {id(self.now[path]): data for path, data in alive.items()}
        tree = self._names_after()
        after: dict[str, bytes | None] = {}
        for path, entry in sorted(tree.items(), key=lambda item: item[0].count(os.sep)):
            if path == self.root or after.get(os.path.dirname(path), b"") is None:  # its folder is there
                after[path] = None if entry is True else self._bytes_after(entry, whole.get(id(entry), b""))
        for path in alive:
            folder = os.path.dirname(path)
            finished = os.path.join(folder, RESULT_FILE) in alive and not operation.path.startswith(folder)
            if finished and os.path.basename(path) in OF_A_NETWORK and after.get(path) != alive[path]:
                say(self.log, f"lost {path}")
        self._write(after)

    def _write(self, after: dict[str, bytes | None]) -> None:
        os.unlink, os.rmdir, os.open = REAL["unlink"], REAL["rmdir"], REAL["open"]
        if os.path.isdir(self.root):
            shutil.rmtree(self.root)
        for path, data in after.items():
            if data is None:
                REAL["mkdir"](path)
            else:
                with real_open(path, "wb") as file:
                    file.write(data)

    def _names_after(self) -> dict[str, _File | bool]:
        last: dict[str, int] = {}  # folder -> how many of its changes are on the disk
        for folder in {change.folder for change in self.changes}:
            own = [change.synced for change in self.changes if change.folder == folder]
            synced = max((n + 1 for n, done in enumerate(own) if done), default=0)
            last[folder] = {
                "all": synced,
                "data": len(own),
                "some": self.draw.randint(synced, len(own)),
            }[self.losses]
        tree = dict(self.start)
        for change in self.changes:
            last[change.folder] -= 1
            if last[change.folder] < 0:
                continue
            path = os.path.join(change.folder, change.name)
            if change.what is None:
                tree.pop(path, None)
            else:
                tree[path] = change.what
        return tree

    def _bytes_after(self, file: _File, whole: bytes) -> bytes:
        synced = file.synced or b""
        return (
            whole[: self.draw.randint(len(synced), max(len(synced), len(whole)))] if self.losses == "some" else synced
        )


def _bytes(path: str) -> bytes:
    with real_open(path, "rb") as file:
        return file.read()
