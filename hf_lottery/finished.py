"""The folder of a finished network, as everything that reads it does: its line of results, and its checked files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lottery.layout import MANIFEST_FILE, RESULT_FILE, REWIND_FOLDER, TICKET, Network, round_folder
from hf_lottery.learning_rates import OF_RECIPE, USED
from hf_lottery.sealed import FILES, DamagedFile, read_sealed, require_whole, require_whole_folder

_NUMBERS = ("density", "kept", "prunable", "steps", "seed", USED, OF_RECIPE)
_METRICS = ("eval_", "test_", "early_stop_", "train_seconds", "last_lr_factor", "other_text_")


def read_line(folder: str | os.PathLike, network: Network | None = None) -> dict[str, Any] | None:
    """The network's line of results.jsonl; None if the network is not finished.

    Args:
        folder: of the network.
        network: which one it must be; None: the one that the folder's name says.

    Raises:
        DamagedFile: its result.json is not what was written, or was written for another network.
    """
    document = _result(Path(folder), network)
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


def damages(folder: str | os.PathLike, network: Network | None = None) -> list[DamagedFile]:
    """All files of a finished network that are not what was written; none if the network is not finished.

    Args:
        folder, network: as in `read_line`.
    """
    folder, found = Path(folder), []
    try:
        document = _result(folder, network) or {}
    except DamagedFile as damage:
        return [damage]
    for name, record in document.get(FILES, {}).items():
        try:
            require_whole(folder / name, record)
        except DamagedFile as damage:
            found.append(damage)
    return found


def require_whole_rewind_point(replicate: str | os.PathLike) -> None:
    """Compare the state at the rewind step, in the folder of a replicate, with its manifest.

    Nothing is compared before round 0 is finished, or if an earlier version wrote it, without a manifest.

    Raises:
        DamagedFile: a file of it is not what was written.
    """
    rewind = Path(replicate) / REWIND_FOLDER
    if (rewind / MANIFEST_FILE).exists():
        require_whole_folder(rewind)
        return
    document = _result(round_folder(replicate, 0))
    if FILES in (document or {}) and document.get("diverged") is None:  # it may have diverged before step k
        raise DamagedFile(rewind / MANIFEST_FILE, "it is missing")


def _result(folder: Path, network: Network | None = None) -> dict[str, Any] | None:
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    document = read_sealed(path)
    try:
        found = Network.of_line(document)
    except (KeyError, TypeError, ValueError):
        raise DamagedFile(path, "it is not the result of a network") from None
    if (odd := odd_value(document)) is not None:
        raise DamagedFile(path, f"{odd} is {document.get(odd)!r:.80}, and no number")
    if (network is not None and found != network) or not _fits(found, folder):
        raise DamagedFile(path, f"it is the result of another network, {found}")
    return document


def odd_value(line: Mapping[str, Any]) -> str | None:
    """The first key of a line of results whose value should be a number, or a number or null, and is not."""
    for key, value in line.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number and (key in _NUMBERS or (value is not None and key.startswith(_METRICS))):
            return key
    return None


def _fits(network: Network, folder: Path) -> bool:
    """Whether a ticket is in the folder of its own round. Other folders may have any name."""
    named = re.fullmatch(r"round-(\d+)", folder.absolute().name)
    return named is None or network.control != TICKET or network.round == int(named[1])
