"""Files that are written whole or not at all: first under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Inside the block, write to the path that it gives; at the end, that file replaces `path`.

    If the block raises an error, the new file is removed and the old one stays. Folders above `path` are created.

    Args:
        path: several processes may write the same one: each writes a file of its own first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a small UTF-8 file."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it could not be written, most often because the disk is full; nothing is left of it.
    """
    try:
        with replacing(path) as partial:
            save_file(dict(tensors), partial, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(
            f"{path} could not be written: {error}. Finished networks are safe: make room on the disk and run again."
        ) from error
