"""What is exported: the weights and mask of a ticket's folder or of a trained network's, and their recipe."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.recipe.recipe import Recipe, load_recipe
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.network_folder import NetworkFolder


@dataclass
class Source:
    """One network.

    Args:
        path: where it was read.
        mask: True = kept.
        tensors: parameter or buffer name -> value, of what was trained; pruned weights are zero, or at θ_k.
        rewind: θ_k, where training started.
        recipe: what it was trained by.
        trained: whether `tensors` are at the end of training; a ticket's are at θ_k.
        ticket: that they come from. Of a Hub model's own weights it holds the hashes alone: `apply_to` puts it into a
            model whole, and checks that model.
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

    Raises:
        FileNotFoundError: it is neither.
        ValueError: its recipe is not known.
    """
    path = Path(path)
    unit = NetworkFolder(path)
    if unit.finished:
        return _unit(unit)
    for folder in (path, path / "ticket"):
        if (folder / "ticket.json").is_file():
            return _ticket(folder)
    raise FileNotFoundError(
        f"{path} holds neither result.json (a trained network, such as outputs/NAME/replicate-0/round-03) nor "
        "ticket.json (a ticket)"
    )


def _unit(unit: NetworkFolder) -> Source:
    root = next((p for p in unit.path.resolve().parents if (p / "recipe.yaml").is_file()), None)
    replicate = next((p for p in unit.path.resolve().parents if (p / "rewind" / "rewind.safetensors").is_file()), None)
    if root is None or replicate is None:
        raise ValueError(
            f"{unit.path} lies outside its run: recipe.yaml and the rewind point are read from the folders above it"
        )
    return Source(
        unit.path,
        unit.mask(),
        unit.trained().tensors,
        RewindPoint.load(replicate / "rewind" / "rewind.safetensors"),
        load_recipe(str(root / "recipe.yaml")),
        trained=True,
    )


def _ticket(folder: Path) -> Source:
    ticket = Ticket.from_pretrained(folder)
    text = ticket.info.get("recipe")
    if not text:
        raise ValueError(
            f"the ticket in {folder} holds no recipe to build its model by: export a run's folder instead"
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        recipe = load_recipe(str(path))
    tensors = dict(ticket.rewind.tensors)
    if ticket.pruned_becomes == "zero":
        for name, kept in ticket.mask.items():
            if name in tensors:
                tensors[name] = torch.where(kept, tensors[name], torch.zeros((), dtype=tensors[name].dtype))
    return Source(folder, ticket.mask, tensors, ticket.rewind, recipe, trained=False, ticket=ticket)
