"""Checksums: of files, and of JSON documents that hold their own. What was damaged since it was written is noticed.

A sealed document has a last key `sha256`: over the document without this key, as JSON with sorted keys and without
spaces. It lists other files under `files`: name -> {"bytes": size, "sha256": hex}.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_lottery.files import SCRATCH, flush, flush_folder, write_text
from hf_lottery.layout import CHECKSUM_LINE, MANIFEST_FILE

SEAL = "sha256"
FILES = "files"


class DamagedFile(ValueError):
    """A file of a run is not what was written.

    Attributes:
        path: the file.
        why: what is wrong with it, a clause.
    """

    def __init__(self, path: str | os.PathLike, why: str):
        super().__init__(f"{os.fspath(path)} is damaged: {why}")
        self.path, self.why = Path(path), why

    def __reduce__(self):
        return type(self), (self.path, self.why)


@contextmanager
def readable(path: str | os.PathLike) -> Iterator[None]:
    """Raise whatever goes wrong in the block, which reads `path`, as a DamagedFile."""
    try:
        yield
    except (FileNotFoundError, DamagedFile):
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.PickleError) as error:
        detail = " ".join(str(error).split())[:200]
        raise DamagedFile(path, f"it cannot be read ({detail or type(error).__name__})") from error


def file_record(path: str | os.PathLike) -> dict[str, Any]:
    """The size in bytes and the SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def file_records(folder: str | os.PathLike, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name -> `file_record`, of files in `folder`."""
    return {name: file_record(Path(folder) / name) for name in names}


def require_whole(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Raise DamagedFile unless the file is what `file_record` saw."""
    path = Path(path)
    if not path.exists():
        raise DamagedFile(path, "it is missing")
    _refuse_folder(path)
    size, expected = path.stat().st_size, record["bytes"]
    if size != expected:
        raise DamagedFile(path, f"it has {size:,} bytes, and {expected:,} were written")
    if file_record(path)[SEAL] != record[SEAL]:
        raise DamagedFile(path, "its contents have changed since they were written")


def _refuse_folder(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise DamagedFile(path, "it is a folder, and was a file")


def write_sealed(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
    """Write a JSON document with its own checksum."""
    document = {**document, SEAL: checksum(document)}
    write_text(path, json.dumps(document, indent=1) + "\n")


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the checksum.

    A document of an earlier version, which has neither a checksum nor a list of files, is read as it is.

    Raises:
        FileNotFoundError: it is not there.
        DamagedFile: it is something else than what was written.
    """
    path = Path(path)
    _refuse_folder(path)
    data = path.read_bytes()
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise DamagedFile(path, "it is empty" if not data.strip() else "it is no JSON, or not all of it") from None
    if not isinstance(document, dict):
        raise DamagedFile(path, f"it holds a JSON {type(document).__name__}, and not an object")
    seal = document.pop(SEAL, None)
    if seal != checksum(document) and not (seal is None and FILES not in document):
        raise DamagedFile(path, "its contents do not fit its checksum")
    return document


def checksum(document: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a JSON document; the same however the file is laid out."""
    text = json.dumps(json.loads(json.dumps(document)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- text for people, whose first line is its checksum


def write_sealed_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file whose first line, a YAML comment, has the checksum of the rest."""
    write_text(path, f"{CHECKSUM_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_sealed_text(path: str | os.PathLike) -> str:
    """Read what `write_sealed_text` wrote, without the checksum; a file without one (of an earlier version) as it is.

    Raises:
        FileNotFoundError: it is not there.
        DamagedFile: it was changed since it was written.
    """
    path = Path(path)
    _refuse_folder(path)
    with readable(path):
        text = path.read_bytes().decode("utf-8-sig")
    first, _, rest = text.partition("\n")
    if not first.startswith("# sha256"):
        if not text.strip():
            raise DamagedFile(path, "it is empty")
        return text
    if first.removeprefix(CHECKSUM_LINE).strip() != hashlib.sha256(rest.encode()).hexdigest():
        raise DamagedFile(path, "it was changed since it was written: its contents do not fit its checksum")
    return rest


# --- a folder with a manifest: a checkpoint, or the state at the rewind step


def seal_folder(folder: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """Put all files of a folder on the disk, then write its manifest: a folder that has one is complete.

    Args:
        folder: with all its files, in folders inside it too.
        facts: what else the manifest says.
    """
    folder = Path(folder)
    inside = [path for path in sorted(folder.rglob("*")) if SCRATCH not in path.relative_to(folder).as_posix()]
    names = [path.relative_to(folder).as_posix() for path in inside if path.is_file()]
    names = [name for name in names if name != MANIFEST_FILE]
    for name in names:
        flush(folder / name)
    for path in [folder.parent, folder, *(path for path in inside if path.is_dir())]:
        flush_folder(path)
    write_sealed(folder / MANIFEST_FILE, {**facts, FILES: file_records(folder, names)})


def require_whole_folder(folder: str | os.PathLike) -> dict[str, Any]:
    """Compare every file of a folder with its manifest; returns the manifest's facts.

    Raises:
        DamagedFile: there is no manifest, so that writing the folder was not finished, or a file has changed since.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise DamagedFile(folder, f"it has no {MANIFEST_FILE}, which is written last")
    manifest = read_sealed(path)
    files = manifest.pop(FILES, None)
    if not isinstance(files, dict):
        raise DamagedFile(path, "it lists no files")
    for name, record in files.items():
        require_whole(folder / name, record)
    return manifest
