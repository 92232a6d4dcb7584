"""The file `command` of an output folder: the command that was typed, and below it its checksum."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from hf_lottery.files import write_text
from hf_lottery.layout import COMMAND_FILE
from hf_lottery.sealed import DamagedFile, readable

_log = logging.getLogger(__name__)
_CHECKSUM = "# sha256 of the lines above: "  # a comment of the shell: `sh OUT/command` runs the command


def write_command(root: Path, command: str) -> None:
    """Write the command that makes the output folder `root`.

    Args:
        command: with its overrides.
    """
    write_text(root / COMMAND_FILE, f"{command}\n{_CHECKSUM}{_sha256(command)}\n")


def keep_command(root: Path, command: str) -> None:
    """Leave the file as it is; if it is missing or damaged, say so and write `command`.

    Raises:
        OSError: a folder that is not empty is in its place.
    """
    try:
        read_command(root)
    except DamagedFile as damage:
        _log.warning("%s. It is written anew, with the command that was given now.", damage)
        if damage.path.is_dir():
            damage.path.rmdir()
        write_command(root, command)


def read_command(root: Path) -> str:
    """The command that made the output folder `root`.

    Raises:
        DamagedFile: the file is missing, or not what was written.
    """
    path = root / COMMAND_FILE
    if not path.exists():
        raise DamagedFile(path, "it is missing")
    with readable(path):
        text = path.read_text(encoding="utf-8")
    command, _, last = text.removesuffix("\n").rpartition("\n")
    if not command and text == f"{last}\n" and _CHECKSUM[:8] not in last:
        return last  # an earlier version wrote the command alone
    if text != f"{command}\n{_CHECKSUM}{_sha256(command)}\n":
        raise DamagedFile(path, "it was changed since it was written: its contents do not fit its checksum")
    return command


def _sha256(command: str) -> str:
    return hashlib.sha256(command.encode()).hexdigest()
