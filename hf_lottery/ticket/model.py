"""The trained network beside a ticket, as transformers or PEFT write it: to load without hf_lottery."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hf_lottery.ticket.document import TicketError
from hf_lottery.ticket.schema import FILES


def write_model(
    folder: Path, model: PreTrainedModel | PeftModel, mask: Mapping[str, Tensor], pruned: str
) -> list[str]:
    """Write the trained `model` into `folder`; returns the names of its files.

    Args:
        folder: the ticket's folder.
        model: a transformers model, written as a plain model.safetensors, or a PEFT model, whose adapter is written.
        mask: the ticket's mask.
        pruned: `zero`, where pruned weights must be exactly zero, or `init`.

    Raises:
        TicketError: the model is of neither kind, a pruned weight is not zero, or config.json would send a loader
            into a quantiser or a sparsity plug-in.
    """
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise TicketError(
            f"a {type(model).__name__} cannot be loaded without its code; include a transformers or a PEFT model"
        )
    _require_masked(model, mask, pruned == "zero")
    names = []
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        _check_config(Path(scratch) / "config.json")
        # only what we know: a model may bring a card, Python files or a pickle of its own
        for path in sorted(Path(scratch).iterdir()):
            if FILES.fullmatch(path.name):
                shutil.copyfile(path, folder / path.name)
                names.append(path.name)
    if not any(name.endswith(".safetensors") for name in names):
        raise TicketError("the model to be included wrote no weights of its own name: name the adapter 'default'")
    return names


def _require_masked(model: PreTrainedModel | PeftModel, mask: Mapping[str, Tensor], zero: bool) -> None:
    parameters = dict(model.named_parameters())
    for name, kept in mask.items():
        if name not in parameters:
            raise TicketError(f"the mask is over '{name}', which is not a parameter of the model to be included")
        weight = parameters[name].detach()
        if weight.shape != kept.shape:
            raise TicketError(
                f"'{name}' has shape {tuple(weight.shape)} in the model to be included, and another mask"
            )
        if not zero:
            continue
        nonzero = int(weight[~kept.to(weight.device)].count_nonzero())
        if nonzero:
            raise TicketError(
                f"{nonzero} pruned weights of '{name}' are not zero in the model to be included; "
                "train it with LotteryTrainer(..., ticket=ticket), which keeps them so"
            )


def _check_config(path: Path) -> None:
    if not path.is_file():
        return
    for key in ("quantization_config", "sparsity_config"):
        if key in json.loads(path.read_text(encoding="utf-8")):
            raise TicketError(f"the model's config.json would hold {key}; include its adapter, or a plain model")
