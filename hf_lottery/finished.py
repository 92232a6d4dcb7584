"""The folder of a finished network, as everything that reads it does: its line of results, and its checked files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_lottery.layout import RESULT_FILE, Network
from hf_lottery.sealed import FILES, DamagedFile, read_sealed, require_whole


def read_line(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The network's line of results.jsonl; None if the network is not finished.

    Raises:
        DamagedFile: its result.json is not what was written.
    """
    document = _result(Path(folder))
    return None if document is None else {key: value for key, value in document.items() if key != FILES}


def whole_file(folder: str | os.PathLike, name: str) -> Path:
    """The path of a finished network's file, after its size and checksum were compared with those in result.json.

    A file that result.json does not list is not checked (an earlier version listed none).

    Raises:
        DamagedFile: the file, or result.json itself, is not what was written.
        FileNotFoundError: there is no such file.
    """
    folder = Path(folder)
    path, document = folder / name, _result(folder) or {}
    if name in document.get(FILES, {}):
        require_whole(path, document[FILES][name])
    elif not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    return path


def damages(folder: str | os.PathLike) -> list[DamagedFile]:
    """All files of a finished network that are not what was written; none if the network is not finished."""
    folder, found = Path(folder), []
    try:
        document = _result(folder) or {}
    except DamagedFile as damage:
        return [damage]
    for name, record in document.get(FILES, {}).items():
        try:
            require_whole(folder / name, record)
        except DamagedFile as damage:
            found.append(damage)
    return found


def _result(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    document = read_sealed(path)
    try:
        Network.of_line(document)
    except (KeyError, TypeError, ValueError):
        raise DamagedFile(path, "it is not the result of a network") from None
    return document
