"""FolderLock: one process at a time works in a folder; the others can say which one does."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from hf_lottery.files import make_folder
from hf_lottery.layout import HOLDER_FILE, LOCK_FILE


class FolderLock:
    """A lock on a folder, which the operating system releases if its process dies.

    Args:
        folder: is created if it does not exist.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._lock = FileLock(self.folder / LOCK_FILE)

    def take(self) -> bool:
        """Take the lock; False if another process has it."""
        make_folder(self.folder)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        (self.folder / HOLDER_FILE).write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        return True

    def require(self, advice: str) -> None:
        """Take the lock.

        Args:
            advice: what to do if another process has it, a clause.

        Raises:
            ValueError: another process has it; the message names it.
        """
        if not self.take():
            raise ValueError(f"{self.folder} is in use by {self.holder()}: {advice}")

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self._lock.is_locked:
            (self.folder / HOLDER_FILE).unlink(missing_ok=True)
            self._lock.release()

    def tidy(self) -> None:
        """Remove the name that a process left which was killed while it had the lock."""
        if (self.folder / HOLDER_FILE).exists() and self.take():
            self.release()

    def holder(self) -> str:
        """Which process has the lock, or had it last."""
        try:
            return (self.folder / HOLDER_FILE).read_text(encoding="utf-8").strip() or "another process"
        except (OSError, UnicodeDecodeError):
            return "another process"
