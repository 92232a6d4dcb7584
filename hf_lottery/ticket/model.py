"""The trained network in a ticket's folder, written by transformers or PEFT, so that it loads without hf_lottery."""

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
from hf_lottery.ticket.finite import require_finite_tensors
from hf_lottery.ticket.publishing import published_value
from hf_lottery.ticket.schema import FILES


def write_model(
    folder: Path, model: PreTrainedModel | PeftModel, mask: Mapping[str, Tensor], pruned_value: str
) -> list[str]:
    """Write the trained `model` into `folder`; returns the names of its files.

    Args:
        folder: the ticket's folder.
        model: a transformers model, written as a plain model.safetensors, or a PEFT model, whose adapter is written.
        mask: the ticket's mask.
        pruned_value: `zero`: pruned weights must be exactly zero; `init`: they may have any value.

    Raises:
        TicketError: the model is of another class, a pruned weight is not zero, or config.json names a quantiser or a
            sparsity plug-in that would be used when it is loaded.
    """
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise TicketError(
            f"a {type(model).__name__} cannot be loaded without its code; include a transformers or a PEFT model"
        )
    _require_masked(model, mask, pruned_value == "zero")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    require_finite_tensors(trained, mask, "the model to be included")
    names = []
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        _check_config(Path(scratch) / "config.json")
        # only names that are known: a model may also write a card, Python files or a pickle
        for path in sorted(Path(scratch).iterdir()):
            if FILES.fullmatch(path.name):
                _copy(path, folder / path.name)
                names.append(path.name)
    if not any(name.endswith(".safetensors") for name in names):
        raise TicketError("the model to be included wrote no file of weights: its adapter must be named 'default'")
    return names


def _copy(path: Path, copy: Path) -> None:
    """Copy a file; a config without the local paths in it, such as that of an adapter's base model."""
    if path.suffix != ".json":
        shutil.copyfile(path, copy)
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    cleaned = published_value(config)
    if cleaned == config:
        shutil.copyfile(path, copy)
    else:
        copy.write_text(json.dumps(cleaned, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
