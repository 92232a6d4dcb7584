"""Files that are written whole or not at all: in a scratch folder first, then flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

SCRATCH = ".partial-"  # begins the name of a scratch folder: .partial-MACHINE-PROCESS-RANDOM
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_PROCESS = secrets.token_hex(4)
_NUMBERS = itertools.count()
_DAY = 24 * 60 * 60


class NotWritten(OSError):
    """A file could not be written. The file that was there before is as it was."""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Inside the block, write to the path that it gives; at the end, that file replaces `path`.

    After a crash or a power cut there is the old file or the new one, never a part. If the block raises an error, the
    old file stays. Folders above `path` are created.

    Args:
        path: several processes may write the same one: each writes a file of its own first.

    Raises:
        NotWritten: the operating system refused, most often because the disk is full.
    """
    path = Path(path)
    with naming(path), scratch(path.parent) as folder:
        partial = folder / path.name
        yield partial
        flush(partial)
        if path.is_dir():
            path.rmdir()  # an empty folder in the file's place; others are not touched
        os.replace(partial, path)
        flush_folder(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a small UTF-8 file. Raises NotWritten as `replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises NotWritten as `replacing` does."""
    with replacing(path) as partial:
        save_file(dict(tensors), partial, metadata=dict(metadata))
        if len(metadata) > 1:
            _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata, whose order is random, so that equal tensors give equal files."""
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format allows spaces at its end


def write_state(path: str | os.PathLike, state: Any) -> None:
    """Write what only `torch.save` can hold. Raises NotWritten as `replacing` does."""
    with replacing(path) as partial, naming(path, RuntimeError):  # torch.save's own error
        torch.save(state, partial)


@contextmanager
def naming(path: str | os.PathLike, *errors: type[Exception]) -> Iterator[None]:
    """Raise an error of writing as a NotWritten that names `path`, and says that nothing else is lost.

    Args:
        path: the file or folder that the block writes.
        errors: classes that mean an error of writing here, beside OSError and SafetensorError.
    """
    try:
        yield
    except NotWritten:
        raise
    except (OSError, SafetensorError, *errors) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise NotWritten(
            f"{path} could not be written: {why}. Finished networks are safe: make room on the disk, or see that the "
            "folder can be written to, and run again."
        ) from error


# --- scratch folders


@contextmanager
def scratch(folder: str | os.PathLike) -> Iterator[Path]:
    """A new folder in `folder` for files that are not complete yet. It is gone after the block.

    Scratch folders of processes that were killed are removed first.
    """
    folder = Path(folder)
    make_folder(folder)
    sweep(folder)
    own = folder / f"{SCRATCH}{_MACHINE}-{os.getpid()}-{_PROCESS}{next(_NUMBERS)}"
    own.mkdir()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def remove_folder(folder: str | os.PathLike) -> None:
    """Remove a folder with all that is in it, at once: after a crash it is there whole, or gone."""
    folder = Path(folder)
    with scratch(folder.parent) as trash:
        os.replace(folder, trash / folder.name)


@contextmanager
def filling(folder: str | os.PathLike) -> Iterator[Path]:
    """Inside the block, write files into the folder that it gives; at the end they are moved to `folder`, all whole.

    Raises:
        NotWritten: the operating system refused; `folder` has none of the files then, or some of them whole.
    """
    folder = Path(folder)
    with naming(folder), scratch(folder) as new:
        yield new
        files = [path for path in sorted(new.rglob("*")) if path.is_file()]
        for path in files:
            flush(path)
        for path in files:
            target = folder / path.relative_to(new)
            make_folder(target.parent)
            os.replace(path, target)
            flush_folder(target.parent)


def sweep(folder: str | os.PathLike) -> None:
    """Remove the scratch folders in `folder` whose process is gone."""
    for path in Path(folder).glob(f"{SCRATCH}*"):
        if _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def sweep_all(folder: str | os.PathLike) -> None:
    """`sweep` in a folder and in all folders below it, such as checkpoints and reports that are complete."""
    for path, folders, _ in os.walk(folder):
        if any(name.startswith(SCRATCH) for name in folders):
            sweep(path)


def _abandoned(path: Path) -> bool:
    import psutil  # is seldom needed, and slow to import

    try:
        machine, process, token = path.name.removeprefix(SCRATCH).split("-")
        written = path.stat().st_mtime
        if machine != _MACHINE:
            return time.time() - written > _DAY
        if int(process) == os.getpid():
            return not token.startswith(_PROCESS)
        found = psutil.Process(int(process))
        # a zombie is dead, and only its parent has not asked; or another process has the number now
        return found.status() == psutil.STATUS_ZOMBIE or found.create_time() > written + 1
    except psutil.NoSuchProcess:
        return True
    except (ValueError, OSError, psutil.Error):
        return False


# --- what is on the disk, and not only in the operating system's memory


def make_folder(folder: str | os.PathLike) -> None:
    """Create a folder, and those above it, so that they are there after a power cut."""
    folder = Path(folder)
    if folder.is_dir():
        return
    with naming(folder):
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush(path: str | os.PathLike) -> None:
    """Wait until the contents of a file are on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: str | os.PathLike) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name != "posix":
        return  # others have no such call
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems refuse
            raise
    finally:
        os.close(descriptor)
