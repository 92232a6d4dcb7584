"""Write a ticket's folder: ticket.json, the tensors, the card, and on request the trained network and the plots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from hf_lottery.files import flush, flush_folder, make_folder, naming, scratch
from hf_lottery.layout import REWIND_FILE
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.sealed import file_records
from hf_lottery.ticket.base_model import dtype_name
from hf_lottery.ticket.card import ticket_card
from hf_lottery.ticket.document import TicketError, dump, parse, read_bounded
from hf_lottery.ticket.finite import require_finite
from hf_lottery.ticket.model import write_model
from hf_lottery.ticket.publishing import published_recipe
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.schema import CARD_FILE, FILES, JSON_FILE, SCHEMA, read_document
from hf_lottery.ticket.tensors import write_mask, write_rewind


def write_folder(
    folder: Path,
    mask: Mask,
    rewind: RewindPoint,
    info: Mapping[str, Any],
    *,
    compress: bool = False,
    model: PreTrainedModel | PeftModel | None = None,
    plots: Iterable[Path] = (),
) -> None:
    """Write a ticket into `folder`. All files are made first: after an error, the folder is as it was.

    ticket.json is moved there last, so that every file that it lists is there; files of the ticket that was there
    before, and that this one does not have, are removed.

    Args:
        folder: is created if it does not exist.
        mask, rewind, info: as in `Ticket`.
        compress, model, plots: as in `Ticket.save_pretrained`.

    Raises:
        TicketError: as in `Ticket.save_pretrained`.
    """
    if folder.is_file():
        raise TicketError(f"{folder} is a file; a ticket is saved into a folder")
    make_folder(folder)
    info = publishable(info)
    card = folder / CARD_FILE
    if card.is_symlink():
        raise TicketError(f"{card} is a link; a ticket's card must be a file in its folder")
    existing = decode_card(card.read_bytes()) if card.is_file() else None
    with naming(folder), scratch(folder) as new:
        tensors = tensor_table(mask, rewind, info)
        require_finite(mask, rewind, info)
        files, encoding = _write_tensors(new, mask, rewind, tensors, compress)
        if model is not None:
            files += write_model(new, model, mask, info["pruned_becomes"])
        files += _copy_plots(new, plots)
        facts = {"mask_encoding": encoding, "rewind_step": rewind.step, "fingerprint": mask.fingerprint()}
        _write_json(new, info, facts, tensors, files)
        (new / CARD_FILE).write_bytes(encode_card(mask, rewind.step, info, files, existing=existing))
        all_files = (*files, CARD_FILE, JSON_FILE)
        for name in all_files:
            flush(new / name)
        stale = _listed_files(folder) - set(files)
        for name in (*all_files, *stale):
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                raise TicketError(f"{folder / name} is a folder, where a ticket has a file; remove it")
        for name in stale:
            (folder / name).unlink(missing_ok=True)
        for name in all_files:  # replaces a link, does not write to what the link points at
            os.replace(new / name, folder / name)
        flush_folder(folder)


def decode_card(data: bytes) -> str:
    """A README.md's text.

    Raises:
        TicketError: it is not UTF-8, so that the user's own text could not be kept.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TicketError("README.md is not UTF-8, so that its text could not be kept: save it as UTF-8") from None


def encode_card(
    mask: Mask,
    rewind_step: int,
    info: Mapping[str, Any],
    files: Iterable[str],
    repo_id: str | None = None,
    existing: str | None = None,
) -> bytes:
    """README.md of a ticket with these files; the text of `existing` outside of our part stays."""
    return ticket_card(
        info,
        mask.counts(),
        rewind_step=rewind_step,
        fingerprint=mask.fingerprint(),
        files=list(files),
        repo_id=repo_id,
        existing=existing,
    ).encode()


def publishable(info: Mapping[str, Any]) -> dict[str, Any]:
    """A ticket's `info`; tokens and absolute paths are left out of its recipe, also where the user gave the text."""
    recipe = info.get("recipe")
    return {**info, "recipe": published_recipe(recipe)} if isinstance(recipe, str) else dict(info)


def tensor_table(mask: Mask, rewind: RewindPoint, info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> record of ticket.json's `tensors`: where the value is stored, shape, dtype, how many weights are kept.

    Raises:
        TicketError: the mask is over a tensor that the rewind point does not have, or of another shape.
    """
    tensors = {name: dict(record) for name, record in info.get("base_tensors", {}).items()}
    for name, value in rewind.tensors.items():
        if name not in tensors:
            stored = "survivors" if name in mask and info["pruned_becomes"] == "zero" else "dense"
            tensors[name] = {"shape": list(value.shape), "dtype": dtype_name(value), "stored": stored}
    for name, (kept, _) in mask.counts().items():
        if name not in tensors or tensors[name]["stored"] in ("frozen", "derived"):
            raise TicketError(f"the mask is over '{name}', and the rewind point does not hold it")
        shape = tuple(mask[name].shape)
        if tuple(tensors[name]["shape"]) != shape:
            raise TicketError(f"'{name}' has shape {tuple(tensors[name]['shape'])} and a mask of shape {shape}")
        tensors[name]["kept"] = kept
    return tensors


def _write_tensors(
    folder: Path, mask: Mask, rewind: RewindPoint, tensors: Mapping[str, Mapping[str, Any]], compress: bool
) -> tuple[list[str], str]:
    """Write the mask and what the base model does not have of θ_k; returns the files and the mask's encoding."""
    own = ("survivors", "dense")
    values = {name: value for name, value in rewind.tensors.items() if tensors[name]["stored"] in own}
    encoding = write_mask(folder / MASK_FILE, mask, compress)
    if not values:
        return [MASK_FILE], encoding
    dense = [name for name in values if tensors[name]["stored"] == "dense"]
    write_rewind(folder / REWIND_FILE, values, mask, dense)
    return [MASK_FILE, REWIND_FILE], encoding


def _copy_plots(folder: Path, plots: Iterable[Path]) -> list[str]:
    names = []
    for plot in plots:
        if not FILES.fullmatch(plot.name):
            raise TicketError(f"the plot '{plot.name}' is not named like 'accuracy.png': letters, digits, _ and -")
        shutil.copyfile(plot, folder / plot.name)
        names.append(plot.name)
    return names


def _write_json(
    folder: Path,
    info: Mapping[str, Any],
    facts: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Any]],
    files: Iterable[str],
) -> None:
    document = {
        **{key: value for key, value in info.items() if key != "base_tensors"},  # they are in `tensors`
        "format": "hf_lottery_ticket",
        "schema": SCHEMA,
        "mask_true_means": "kept",
        **facts,
        "tensors": tensors,
        "files": file_records(folder, files),
    }
    data = dump(document)
    read_document(data)  # a ticket that could not be read is not written
    (folder / JSON_FILE).write_bytes(data)


def _listed_files(folder: Path) -> set[str]:
    """The files that the ticket.json in `folder` lists; none if it cannot be read."""
    try:
        return {name for name in parse(read_bounded(folder / JSON_FILE))["files"] if FILES.fullmatch(name)}
    except (OSError, TicketError, KeyError, TypeError):
        return set()
