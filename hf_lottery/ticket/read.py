"""Read a ticket's folder: its mask, its rewind point and its facts. Nothing in it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Size

from hf_lottery.layout import REWIND_FILE
from hf_lottery.mask import MASK_FILE
from hf_lottery.ticket.document import TicketError, read_bounded
from hf_lottery.ticket.schema import JSON_FILE, read_document
from hf_lottery.ticket.tensors import StoredMask, StoredRewind, require_file

_IN_REWIND = ("survivors", "dense")  # kinds of tensors that rewind.safetensors holds


def read_folder(folder: Path) -> tuple[StoredMask, StoredRewind, dict[str, Any]]:
    """Read and check ticket.json, and open the files that it lists.

    Returns:
        The mask and the rewind point, on disk, and the ticket's `info`.

    Raises:
        TicketError: ticket.json or a file that it lists is damaged, missing, or not what ticket.json says.
    """
    document = read_document(read_bounded(folder / JSON_FILE))
    files, tensors = document["files"], document["tensors"]
    if MASK_FILE not in files:
        raise TicketError(f"ticket.json does not list {MASK_FILE}, which every ticket has; download it again")
    if REWIND_FILE not in files and any(entry["stored"] in _IN_REWIND for entry in tensors.values()):
        raise TicketError(f"ticket.json does not list {REWIND_FILE}, which holds tensors of it; download it again")
    for name, record in files.items():
        if name in (MASK_FILE, REWIND_FILE) or (folder / name).exists():
            require_file(folder / name, record)
    masked = {name: entry for name, entry in tensors.items() if "kept" in entry}
    mask = StoredMask(
        folder / MASK_FILE,
        {name: Size(entry["shape"]) for name, entry in masked.items()},
        {name: entry["kept"] for name, entry in masked.items()},
        document["mask_encoding"],
        document["fingerprint"],
    )
    stored = {name: entry for name, entry in tensors.items() if entry["stored"] in _IN_REWIND}
    return mask, StoredRewind(folder / REWIND_FILE, stored, document["rewind_step"]), _info(document)


# fields of ticket.json that are about its own folder; a ticket's `info` does not have them
_OF_THE_FOLDER = (
    *("format", "schema", "mask_true_means", "mask_encoding", "fingerprint", "rewind_step", "tensors", "files"),
    "sha256",
)


def _info(document: dict[str, Any]) -> dict[str, Any]:
    """The facts, and as `base_tensors` the records of the tensors that the ticket's own files do not hold."""
    base = {
        name: {key: value for key, value in entry.items() if key != "kept"}
        for name, entry in document["tensors"].items()
        if entry["stored"] not in _IN_REWIND
    }
    return {key: value for key, value in document.items() if key not in _OF_THE_FOLDER} | {"base_tensors": base}
