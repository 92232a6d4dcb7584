"""What is exported: the weights, mask and recipe of a ticket or of a trained network, read from its folder."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_lottery.finished import require_whole_rewind_point
from hf_lottery.layout import RECIPE_FILE, RESULT_FILE, REWIND_FILE, REWIND_FOLDER, TICKET_FOLDER
from hf_lottery.mask import Mask
from hf_lottery.recipe.recipe import Recipe, load_recipe, load_written
from hf_lottery.results.diverged import Diverged
from hf_lottery.sealed import read_sealed_text
from hf_lottery.ticket.publishing import published_recipe
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.schema import JSON_FILE
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.network_folder import NetworkFolder

_REWIND = f"{REWIND_FOLDER}/{REWIND_FILE}"  # in the folder of a replicate


@dataclass
class Source:
    """The network to export.

    Args:
        path: its folder.
        mask: True = kept.
        tensors: parameter or buffer name -> value; pruned weights are zero, or at θ_k.
        rewind: θ_k, where training started.
        recipe: the recipe that it was trained by.
        trained: True: `tensors` are the weights at the end of training; False: those of a ticket, at θ_k.
        ticket: the ticket that was read, if it is one. For weights of a Hub model it holds only hashes, so
            `tensors` lacks them, and `ticket.apply_to` is the way to put it into a model.
    """

    path: Path
    mask: Mask
    tensors: dict[str, Tensor]
    rewind: RewindPoint
    recipe: Recipe
    trained: bool
    ticket: Ticket | None = None


def open_source(path: str | os.PathLike) -> Source:
    """Read a trained network's folder (`replicate-0/round-03`), or a ticket's.

    Args:
        path: the folder; for a ticket also the output folder that has it as `ticket/`.

    Raises:
        FileNotFoundError: there is neither a trained network nor a ticket.
        ValueError: the recipe or the rewind point is missing, or the network diverged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder '{path}'; give the folder of a trained network or of a ticket")
    network = NetworkFolder(path)
    if (path / RESULT_FILE).exists():
        network.result()  # raises if it is damaged
    if network.finished:
        return _network(network)
    for folder in (path, path / TICKET_FOLDER):
        if (folder / JSON_FILE).is_file():
            return _ticket(folder)
    raise FileNotFoundError(
        f"{path} holds neither {RESULT_FILE} (a trained network, such as outputs/NAME/replicate-0/round-03) nor "
        f"{JSON_FILE} (a ticket)"
    )


def _network(network: NetworkFolder) -> Source:
    found = Diverged.of_line(network.result())
    if found is not None:
        raise ValueError(f"the network in {network.path} diverged at {found.where}: export one that did not")
    root = _folder_above(network.path, RECIPE_FILE)
    replicate = _folder_above(network.path, _REWIND)
    require_whole_rewind_point(replicate)
    return Source(
        network.path,
        network.mask(),
        network.trained().tensors,
        RewindPoint.load(replicate / _REWIND),
        load_written(root, trust_metric_code=True),  # an export measures nothing
        trained=True,
    )


def _folder_above(path: Path, file: str) -> Path:
    """The nearest folder above `path` that has `file` in it."""
    found = next((folder for folder in path.resolve().parents if (folder / file).is_file()), None)
    if found is None:
        raise ValueError(
            f"no folder above {path} holds {file}, which is needed to export it: give the network's folder in the "
            "output folder of its run"
        )
    return found


def _recipe(folder: Path, text: str) -> Recipe:
    """The recipe of a ticket; in the output folder of its run, with the local paths that a ticket leaves out."""
    with_paths = folder.resolve().parent / RECIPE_FILE
    if with_paths.is_file() and published_recipe(read_sealed_text(with_paths)) == text:
        return load_recipe(str(with_paths), trust_metric_code=True)  # an export measures nothing
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / RECIPE_FILE
        path.write_text(text, encoding="utf-8")
        return load_recipe(str(path), trust_metric_code=True)


def _ticket(folder: Path) -> Source:
    ticket = Ticket.from_pretrained(folder)
    text = ticket.info.get("recipe")
    if not text:
        raise ValueError(
            f"the ticket in {folder} holds no recipe, which says how to build its model: export a trained network, "
            "such as outputs/NAME/replicate-0/round-03"
        )
    recipe = _recipe(folder, text)
    tensors = dict(ticket.rewind.tensors)
    if ticket.pruned_becomes == "zero":
        for name, kept in ticket.mask.items():
            if name in tensors:
                tensors[name] = torch.where(kept, tensors[name], torch.zeros((), dtype=tensors[name].dtype))
    return Source(folder, ticket.mask, tensors, ticket.rewind, recipe, trained=False, ticket=ticket)
