"""What must be the same in two output folders, bit for bit, and what may differ: times, and marks of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hf_lottery.sealed import DamagedFile, require_whole_folder

# measured by the clock
TIMES = re.compile(r"train_seconds|.*runtime|.*_per_second|total_flos|seconds|.*_time|time|created")
# Trainer logs it at the end, as the mean over the steps of its last process.
MEANS = ("train_loss",)
LOCKS = re.compile(r"\.lock|\.[\w-]+\.lock")  # empty files that locks are on
OUT = re.compile(rb"/[^\s'\"<>]*hf-lottery-crash-[^\s'\"<>]*?/out\b")
SEALED = ("result.json", "manifest.json")  # they list files with their checksums
SEAL = re.compile(rb"^# sha256 of the lines below: \w+\n")
NEVER_COMPARED = ("training_args.bin", "seconds")  # settings pickled; how long a training had taken


def differences(expected: Path, found: Path) -> list[str]:
    """One line for each file that is missing, left over or different; none if the folders hold the same."""
    names, other_names = _files(expected), _files(found)
    lines = [f"{name}: missing" for name in sorted(names - other_names)]
    lines += [f"{name}: left behind" for name in sorted(other_names - names) if not _of_whole_checkpoint(found / name)]
    for name in sorted(names & other_names):
        try:
            mine, theirs = _content(expected / name), _content(found / name)
            lines += [f"{name}: {line}" for line in islice(_unlike(mine, theirs), 4)]
        except Exception as error:  # the file cannot be read
            lines.append(f"{name}: cannot be read: {type(error).__name__}: {error}")
    return lines


def _of_whole_checkpoint(path: Path) -> bool:
    """Whether a file is in a checkpoint that is complete: one more than an undisturbed run has, by SIGTERM."""
    checkpoint = next((folder for folder in path.parents if folder.name.startswith("checkpoint-")), None)
    try:
        return checkpoint is not None and bool(require_whole_folder(checkpoint))
    except DamagedFile:
        return False


def _files(root: Path) -> set[str]:
    """Names of files, and of folders that hold nothing."""
    names = set()
    for path in root.rglob("*"):
        if (path.is_file() or path.is_symlink() or not any(path.iterdir())) and not LOCKS.fullmatch(path.name):
            names.add(path.relative_to(root).as_posix())
    return names


def _content(path: Path) -> Any:
    """What is compared of a file; paths of the output folders of tests.crash are written as OUT."""
    name = path.name
    if name in NEVER_COMPARED or path.is_dir():
        return None
    if name.endswith(".safetensors"):
        return load_file(path)
    if name.endswith((".pt", ".pth")):
        return torch.load(path, weights_only=False)
    data = OUT.sub(b"OUT", path.read_bytes())
    if name.endswith(".json"):
        value = _without_times(json.loads(data))
        if name in SEALED:
            value["files"] = _as_listed(path.parent, value.get("files", {}))
        if isinstance(value, dict):
            value.pop("sha256", None)  # of this file, times included
        return value
    if name.endswith(".jsonl"):
        return [_without_listed(_without_times(json.loads(line))) for line in data.splitlines()]
    return SEAL.sub(b"", data)


def _as_listed(folder: Path, files: dict[str, dict]) -> dict[str, bool]:
    """Whether each file that a document lists is as it says: the checksums themselves are also of times."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() == record["sha256"]
        for name, record in files.items()
    }


def _without_listed(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("files", "sha256")}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_times(item) for key, item in value.items() if not TIMES.fullmatch(key) and key not in MEANS
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _unlike(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two values of JSON, tensors or arrays differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if key not in a or key not in b:
                yield f"{where}[{key!r}] is only in the {'disturbed' if key in b else 'undisturbed'} run"
            else:
                yield from _unlike(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            yield f"{where} has {len(a)} and {len(b)} parts"
        for number, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _unlike(x, y, f"{where}[{number}]")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            yield f"{where} is {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        elif not torch.equal(_bits(a), _bits(b)):
            yield f"{where} differs in {int((a != b).sum())} of {a.numel()} values"
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if not np.array_equal(a, b):
            yield f"{where} differs"
    elif isinstance(a, bytes) and isinstance(b, bytes):
        if a != b:
            yield f"{where} differs ({len(a)} and {len(b)} bytes)"
    elif a != b and not (a != a and b != b):
        yield f"{where} is {_short(a)} and {_short(b)}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaN equals NaN, and 0 is not −0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
