"""The writers in native code, `torch.save` and safetensors, as the same operations in Python, which a plan can see.

safetensors writes `.tmpXXXXXX` beside the file and renames it, without fsync (seen with strace, safetensors 0.8);
torch.save writes into the file itself. Their errors become what the native code raises.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import string
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

if TYPE_CHECKING:
    from tests.crash.disk import Disk

_torch_save, _serialize_file = torch.save, safetensors.serialize_file


def watch(disk: Disk) -> None:
    """Replace both in this process, for files below the disk's folder."""

    def save(obj, f, *args, **kwargs):
        if not isinstance(f, (str, os.PathLike)) or not disk.holds(os.path.abspath(f)):
            return _torch_save(obj, f, *args, **kwargs)
        buffer = io.BytesIO()
        _torch_save(obj, buffer, *args, **kwargs)
        _write_as_torch(disk, os.fspath(f), buffer.getbuffer())

    def serialize_file(tensors, filename, metadata=None):
        if not disk.holds(os.path.abspath(filename)):
            return _serialize_file(tensors, filename, metadata=metadata)
        _write_as_safetensors(disk, os.fspath(filename), safetensors.serialize(tensors, metadata=metadata))

    torch.save = torch.serialization.save = save
    safetensors.serialize_file = safetensors.torch.serialize_file = serialize_file


def _write_as_torch(disk: Disk, path: str, data: memoryview) -> None:
    try:
        file = disk.open(path, "wb", buffering=0)
    except OSError:
        where = os.path.dirname(path)
        if os.path.isdir(where):
            raise RuntimeError(f"open file failed because of errno 28 on fopen, file path: {path}") from None
        raise RuntimeError(f"Parent directory {where} does not exist.") from None
    cuts = [0, len(data) // 3, 2 * len(data) // 3, len(data)]  # it writes record by record
    try:
        with file:
            for start, end in zip(cuts[:-1], cuts[1:], strict=True):
                file.write(data[start:end])
    except OSError:
        raise RuntimeError(
            "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0: file write "
            "failed"
        ) from None


def _write_as_safetensors(disk: Disk, path: str, data: bytes) -> None:
    letters = random.Random(os.urandom(8)).choices(string.ascii_letters + string.digits, k=6)
    partial = os.path.join(os.path.dirname(os.path.abspath(path)), ".tmp" + "".join(letters))
    try:
        with disk.open(partial, "xb", buffering=0) as file:
            file.write(data)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)  # as the native writer does
        raise safetensors.SafetensorError(
            f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
        ) from None
