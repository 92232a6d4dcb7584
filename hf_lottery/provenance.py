"""Where a ticket comes from: its base model and revision, the hashes of what it relies on, versions, seeds."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.rewind import RewindPoint
from hf_lottery.ticket_format import CONTROLS, HUB_ID, PACKAGES, RESULT_KEYS, SHA256, plain_config

# the end of a model's class name -> the task that a ticket says it is for
_TASK_OF_CLASS = {
    "ForImageClassification": "image_classification",
    "ForSequenceClassification": "text_classification",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
}


def ticket_info(
    model: nn.Module,
    mask: Mask,
    rewind: RewindPoint,
    lottery_config: LotteryConfig,
    *,
    seeds: Iterable[int] = (),
    results: Iterable[Mapping[str, Any]] = (),
    recipe: str | None = None,
    datasets: Iterable[str] = (),
    license: str | None = None,
) -> dict[str, Any]:
    """All that a ticket says about itself beside its tensors: `Ticket(mask, rewind, info)`.

    Where θ_k is a Hub model's own (k = 0, loaded at a known commit), that model is loaded once more to see which of
    its tensors can be left out of the ticket; this takes the memory of a second copy of it.

    Args:
        model: the network that was searched; its weights may be trained by now, its frozen ones may not have changed.
        mask: the ticket's mask.
        rewind: θ_k.
        lottery_config: how it was found.
        seeds: `args.seed` of each replicate.
        results: lines of results.jsonl. Their numbers, control, fingerprint and densities are kept.
        recipe: the recipe's text.
        datasets: Hub ids of the data.
        license: Hub id of the licence, such as `apache-2.0`.
    """
    lines = [_plain_result(line) for line in results if line.keys() >= RESULT_KEYS]
    own = [line for line in lines if line["control"] == "ticket" and "densities" in line]
    rounds = {line["round"]: line["densities"] for line in reversed(own)}  # the first replicate's
    base_model, base_revision = _base(model)
    return {
        "base_model": base_model,
        "base_revision": base_revision,
        "base_tensors": base_tensors(model, mask, rewind, lottery_config.pruned_value),
        "task": next((task for end, task in _TASK_OF_CLASS.items() if _inner(model).endswith(end)), None),
        "config": plain_config(model.config.to_dict()) if isinstance(model, PreTrainedModel) else None,
        "pruned_becomes": lottery_config.pruned_value,
        "criterion": lottery_config.criterion,
        "scope": lottery_config.scope,
        "pattern": lottery_config.pattern,
        "retraining": lottery_config.retraining,
        "num_rounds": lottery_config.num_rounds,
        "pruning_rate": lottery_config.pruning_rate,
        "seeds": list(seeds),
        "versions": _versions(),
        "densities": [rounds[number] for number in sorted(rounds)],
        "results": lines,
        "recipe": recipe,
        "datasets": [name for name in datasets if HUB_ID.fullmatch(name)],
        "license": license,
    }


def base_tensors(model: nn.Module, mask: Mask, rewind: RewindPoint, pruned_becomes: str) -> dict[str, dict[str, Any]]:
    """Name -> shape, dtype and hashes of the tensors that a ticket takes from the base model instead of holding them.

    `frozen` ones are relied upon as they are; `base` ones are the part of θ_k that is bit for bit the base model's
    own at a commit of the Hub. Quantised storage is left out: its bytes depend on the device that quantised it.
    """
    found = {
        name: {"theta": "frozen", **_described(p)}
        for name, p in model.named_parameters()
        if name not in rewind.tensors and p.is_floating_point()
    }
    _, revision = _base(model)
    if rewind.step == 0 and revision is not None and isinstance(model, PreTrainedModel):
        # loading it again, rather than trusting the checkpoint's names, tells new heads and converted weights apart
        base = type(model).from_pretrained(model.config._name_or_path, revision=revision, dtype=model.dtype)
        for name, tensor in _all_tensors(base).items():
            if name not in rewind.tensors or _described(tensor) != _described(rewind.tensors[name]):
                continue
            found[name] = {"theta": "base", **_described(tensor)}
            if name in mask and pruned_becomes == "zero":
                rewound = tensor.detach().masked_fill(~mask[name].to(tensor.device), 0)
                found[name]["sha256_rewound"] = tensor_sha256(rewound)
    return found


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256, in hex, over dtype, shape and values (C order, little endian) of a tensor on any device."""
    flat = tensor.detach().cpu().contiguous().flatten()
    digest = hashlib.sha256(f"{dtype_name(tensor)}\0{tuple(tensor.shape)}\0".encode())
    digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def dtype_name(tensor: Tensor) -> str:
    """`torch.float32` -> `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": dtype_name(tensor), "sha256": tensor_sha256(tensor)}


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _base(model: nn.Module) -> tuple[str | None, str | None]:
    """Hub id and commit that the (base) model was loaded from; a local folder, which nobody else has, is not named."""
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        return None, None
    # a config that was made and not loaded has no _commit_hash
    name, commit = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    if not name or not HUB_ID.fullmatch(name) or not commit or not re.fullmatch(r"[0-9a-f]{40}", commit):
        return None, None
    return name, commit


def _inner(model: nn.Module) -> str:
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES[1:]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain_result(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of results.jsonl with what a ticket may carry: numbers, and the texts that are enums or hashes."""
    plain = {}
    for key, value in line.items():
        number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        known = (
            (key == "control" and value in CONTROLS)
            or (key == "fingerprint" and isinstance(value, str) and SHA256.fullmatch(value))
            or (key == "densities" and isinstance(value, Mapping))
        )
        if known or (number and key not in ("control", "fingerprint")):
            plain[key] = value if key != "densities" else {name: list(pair) for name, pair in value.items()}
    return plain
