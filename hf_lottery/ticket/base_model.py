"""Finds the Hub model and commit that a network was loaded from, and the tensors that are equal in both.

transformers does not record the commit that it loaded, so it is looked up in the Hub's cache on this machine. Tensors
are compared by hash, one at a time, so that a large model is never in memory twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_lottery.mask import Mask
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.schema import HUB_ID

COMMIT = re.compile(r"[0-9a-f]{40}")


def bare(model: nn.Module) -> nn.Module:
    """The model without its adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def hub_id(model: nn.Module) -> str | None:
    """The Hub id that the (base) model was loaded from; None for a local folder, which only this machine has."""
    model = bare(model)
    name = model.config._name_or_path if isinstance(model, PreTrainedModel) else ""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def base_tensors(
    model: nn.Module, mask: Mask, rewind: RewindPoint, pruned_value: str, revision: str | None = None
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The tensors that a ticket does not store, because its base model has them.

    Their records say in `stored` which kind they are:

    * `frozen`: not trained; they must be as they are here.
    * `derived`: buffers that no checkpoint holds; computed when the base model is made.
    * `base`: the tensors of θ_k that are bit for bit those of the base model.

    Quantised tensors are left out: their bytes depend on the device that quantised them.

    Args:
        model: the network that was searched.
        mask: the ticket's mask.
        rewind: θ_k.
        pruned_value: `zero` or `init`.
        revision: branch, tag or commit that the base model was loaded at, if known.

    Returns:
        The commit of the base model (None if it is not known), and name -> record: stored, shape, dtype, hashes.
    """
    frozen = _frozen_parameters(model, rewind)
    found = {name: {"stored": "frozen", **_described(p)} for name, p in frozen.items()}
    repo_id = hub_id(model)
    if repo_id is None:
        return None, found
    hashes = {entry["sha256"] for entry in found.values()}
    found |= _derived_buffers(model, rewind)
    if isinstance(model, PeftModel):
        commit, own = own_tensors(repo_id, hashes, {p.dtype for p in frozen.values()}, revision)
        return (commit if own == hashes else None), found
    if rewind.step > 0:
        # θ_k is not the base model's, and no tensor could show which commit training started from
        return (revision if revision and COMMIT.fullmatch(revision) else None), found
    rest = {name: value for name, value in rewind.tensors.items() if name not in found}
    commit, base = _equal_to_base(repo_id, rest, mask if pruned_value == "zero" else {}, revision)
    return commit, found | base


def _frozen_parameters(model: nn.Module, rewind: RewindPoint) -> dict[str, Tensor]:
    # PEFT keeps the head that `modules_to_save` replaced: random in every load, and not used
    unused = tuple(
        f"{name}.original_module." for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)
    )
    return {
        name: p
        for name, p in model.named_parameters()
        if name not in rewind.tensors and p.is_floating_point() and not name.startswith(unused)
    }


def _derived_buffers(model: nn.Module, rewind: RewindPoint) -> dict[str, dict[str, Any]]:
    in_checkpoints = model.state_dict().keys()
    values = {name: rewind.tensors[name] for name, _ in model.named_buffers() if name not in in_checkpoints}
    return {name: {"stored": "derived", **_shape_and_dtype(value)} for name, value in values.items()}


def _equal_to_base(
    repo_id: str, tensors: Mapping[str, Tensor], mask: Mapping[str, Tensor], revision: str | None
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The cached commit that holds the most of `tensors`, and the records of those that it holds.

    Args:
        repo_id: the Hub model.
        tensors: name -> value of θ_0.
        mask: name -> bool tensor; pruned weights become zero, so the hash of θ_0 ⊙ m is recorded too.
        revision: as in `own_tensors`.
    """
    described = {name: _described(value) for name, value in tensors.items()}
    dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()}
    commit, own = own_tensors(repo_id, {entry["sha256"] for entry in described.values()}, dtypes, revision)
    base = {name: {"stored": "base", **entry} for name, entry in described.items() if entry["sha256"] in own}
    for name in base.keys() & mask.keys():
        base[name]["sha256_rewound"] = tensor_sha256(tensors[name].masked_fill(~mask[name].cpu(), 0))
    return commit, base


def own_tensors(
    repo_id: str, wanted: set[str], dtypes: Iterable[torch.dtype], revision: str | None
) -> tuple[str | None, set[str]]:
    """The cached commit of a Hub model that holds the most of the `wanted` hashes, and those that it holds.

    Args:
        repo_id: the Hub model.
        wanted: `tensor_sha256` of the tensors to look for.
        dtypes: to which the checkpoint may have been cast while it was loaded.
        revision: the branch, tag or commit that was loaded; None: every commit in the cache, that of main first.

    Returns:
        (commit, hashes found); (None, empty set) if the cache has no safetensors file with one of them.
    """
    best: tuple[str | None, set[str]] = (None, set())
    for snapshot in _snapshots(repo_id, revision):
        found = wanted & _hashes(snapshot, set(dtypes))
        if len(found) > len(best[1]):
            best = snapshot.name, found
        if found == wanted:
            break
    return best


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
    return {**_shape_and_dtype(tensor), "sha256": tensor_sha256(tensor)}


def _shape_and_dtype(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": dtype_name(tensor)}


def _snapshots(repo_id: str, revision: str | None) -> list[Path]:
    """Folders of the cached commits, that of the named revision (or of main) first."""
    named = try_to_load_from_cache(repo_id, "config.json", revision=revision or "main")
    found = [Path(named).parent] if isinstance(named, str) else []
    if revision is None:  # a commit may have been loaded that is not the head of a branch
        cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "snapshots"
        found += sorted(path for path in cached.glob("*") if path not in found)
    return [path for path in found if COMMIT.fullmatch(path.name)]


def _hashes(snapshot: Path, dtypes: set[torch.dtype]) -> set[str]:
    hashes = set()
    for path in sorted(snapshot.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                casts = dtypes if tensor.is_floating_point() else {tensor.dtype}
                hashes |= {tensor_sha256(tensor.to(dtype)) for dtype in casts}
    return hashes
