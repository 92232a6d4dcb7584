"""Discard what a damaged file belongs to, so that it is computed again from what is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hf_lottery.layout import GENERATIONS_FILE, RESULT_FILE, REWIND_FOLDER, round_folder
from hf_lottery.sealed import DamagedFile
from hf_lottery.training.checkpoints import remove_checkpoints


def owner(damage: DamagedFile, root: str | os.PathLike) -> Path:
    """The folder of the network that must be trained again: of a rewind point, round 0, whose training writes it.

    Args:
        damage: of a file in `root`.
        root: the folder of a run. What the folders above it are called says nothing.
    """
    for folder in _inside(damage.path, root):
        if folder.name == REWIND_FOLDER:
            return round_folder(folder.parent, 0)
        if folder.name.startswith("checkpoint-"):
            return folder.parent
    return damage.path.parent


def discard(damage: DamagedFile, root: str | os.PathLike) -> Path:
    """Make the network that a damaged file belongs to unfinished, and remove what it cannot continue from.

    Args:
        damage, root: as in `owner`. Nothing outside `root` is removed.

    Returns:
        The network's folder.

    Raises:
        OSError: a folder that is not empty is where a file belongs.
    """
    network, path = owner(damage, root), damage.path
    rewind = next((folder for folder in _inside(path, root) if folder.name == REWIND_FOLDER), None)
    if rewind is not None and rewind.is_file():
        rewind.unlink()
    elif rewind is not None:
        shutil.rmtree(rewind, ignore_errors=True)
    if path.parent != network or path.name == GENERATIONS_FILE:  # its training must start again
        remove_checkpoints(network)
    for file in (network / RESULT_FILE, path):
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
    return network


def _inside(path: Path, root: str | os.PathLike) -> list[Path]:
    """`path` and the folders above it, up to `root` and without it, the innermost first."""
    return [folder for folder in (path, *path.parents) if folder.is_relative_to(root) and folder != Path(root)]
