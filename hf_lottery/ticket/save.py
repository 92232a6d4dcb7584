"""A ticket -> its folder: ticket.json, the tensors, the card, and if asked for the trained network and the plots."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lottery.mask import MASK_FILE
from hf_lottery.ticket.base_model import dtype_name
from hf_lottery.ticket.document import TicketError, dump, parse
from hf_lottery.ticket.model import write_model
from hf_lottery.ticket.schema import CARD_FILE, FILES, JSON_FILE, REWIND_FILE, SCHEMA, validate
from hf_lottery.ticket.tensors import file_record, write_mask, write_rewind

if TYPE_CHECKING:
    from hf_lottery.ticket.ticket import Ticket

_NOT_IN_JSON = ("base_tensors",)  # they have fields of another form there


def write_folder(ticket: Ticket, folder: Path, compress: bool, model: Any | None, plots: Iterable[Path]) -> None:
    """Write all files of `ticket` into `folder`, once all of them could be made: an error leaves what was there.

    ticket.json is moved there last, so that it never lists what is not there; files of a ticket that was there before,
    and that this one does not have, are removed.

    Args, Raises: as in `Ticket.save_pretrained`.
    """
    if folder.is_file():
        raise TicketError(f"{folder} is a file; a ticket is saved into a folder")
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / CARD_FILE
    if card.is_symlink():
        raise TicketError(f"{card} is a link; a card is a file of the ticket's own")
    existing = read_card(card.read_bytes()) if card.is_file() else None
    with tempfile.TemporaryDirectory(prefix=".ticket-", dir=folder) as scratch:
        names = _write_files(ticket, Path(scratch), compress, model, list(plots), existing)
        for name in _files_of(folder) - set(names):
            (folder / name).unlink(missing_ok=True)
        for name in names:  # ticket.json is the last; a link that is there is replaced, not followed
            os.replace(Path(scratch) / name, folder / name)


def read_card(data: bytes) -> str:
    """A README.md's text.

    Raises:
        TicketError: it is not UTF-8, so that the user's own text could not be kept.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TicketError("README.md is not UTF-8, so that its text could not be kept: save it as UTF-8") from None


def _files_of(folder: Path) -> set[str]:
    """What the ticket.json that is there lists; nothing where it cannot be read."""
    try:
        return {name for name in parse((folder / JSON_FILE).read_bytes())["files"] if FILES.fullmatch(name)}
    except (OSError, TicketError, KeyError, TypeError):
        return set()


def _write_files(
    ticket: Ticket, folder: Path, compress: bool, model: Any | None, plots: list[Path], existing: str | None
) -> list[str]:
    for plot in plots:
        if not FILES.fullmatch(plot.name):
            raise TicketError(f"the plot '{plot.name}' is not named like 'accuracy.png': letters, digits, _ and -")
    tensors = tensor_table(ticket)
    values = {
        name: value for name, value in ticket.rewind.tensors.items() if name not in ticket.info.get("base_tensors", {})
    }
    files = [MASK_FILE]
    encoding = write_mask(folder / MASK_FILE, ticket.mask, compress)
    if values:
        dense = [name for name in values if tensors[name]["theta"] == "dense"]
        write_rewind(folder / REWIND_FILE, values, ticket.mask, dense)
        files.append(REWIND_FILE)
    if model is not None:
        files += write_model(folder, model, ticket.mask, ticket.pruned_becomes)
    for plot in plots:
        shutil.copyfile(plot, folder / plot.name)
        files.append(plot.name)
    document = {
        **{key: value for key, value in ticket.info.items() if key not in _NOT_IN_JSON},
        "format": "hf_lottery_ticket",
        "schema": SCHEMA,
        "mask_true_means": "kept",
        "mask_encoding": encoding,
        "rewind_step": ticket.rewind_step,
        "fingerprint": ticket.mask.fingerprint(),
        "tensors": tensors,
        "files": {name: file_record(folder / name) for name in files},
    }
    data = dump(document)
    validate(parse(data))  # what we would refuse to read we do not write
    (folder / CARD_FILE).write_bytes(write_card(ticket, files, existing=existing))
    (folder / JSON_FILE).write_bytes(data)
    return [*files, CARD_FILE, JSON_FILE]


def write_card(ticket: Ticket, files: Iterable[str], repo_id: str | None = None, existing: str | None = None) -> bytes:
    """README.md of a ticket with these files; what `existing` says outside of our part stays."""
    # the one import from a floor above: a card shows statistics, which training and loading never need
    from hf_lottery.ticket.card import ticket_card

    return ticket_card(
        ticket.info,
        ticket.mask.counts(),
        rewind_step=ticket.rewind_step,
        fingerprint=ticket.mask.fingerprint(),
        files=list(files),
        repo_id=repo_id,
        existing=existing,
    ).encode()


def tensor_table(ticket: Ticket) -> dict[str, dict[str, Any]]:
    """Name -> entry of ticket.json's `tensors`: where its θ_k is, its shape and dtype, how many weights are kept.

    Raises:
        TicketError: the mask is over a tensor that the rewind point has not, or of another shape.
    """
    base: Mapping[str, Any] = ticket.info.get("base_tensors", {})
    tensors = {name: dict(entry) for name, entry in base.items()}
    for name, value in ticket.rewind.tensors.items():
        if name not in base:
            theta = "survivors" if name in ticket.mask and ticket.pruned_becomes == "zero" else "dense"
            tensors[name] = {"shape": list(value.shape), "dtype": dtype_name(value), "theta": theta}
    for name, (kept, _) in ticket.mask.counts().items():
        if name not in tensors or tensors[name]["theta"] in ("frozen", "derived"):
            raise TicketError(f"the mask is over '{name}', and the rewind point does not hold it")
        shape = tuple(ticket.mask[name].shape)
        if tuple(tensors[name]["shape"]) != shape:
            raise TicketError(f"'{name}' has shape {tuple(tensors[name]['shape'])} and a mask of shape {shape}")
        tensors[name]["kept"] = kept
    return tensors
