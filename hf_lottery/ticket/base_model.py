"""Which Hub model, at which commit, a network was loaded from, and which of its tensors are that model's own.

transformers keeps no record of the commit that it loaded, so it is looked up where the files lie: in the Hub's cache
on this machine. Tensors are compared by hash, one at a time, so that a large model is never held twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_lottery.ticket.schema import HUB_ID

COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_id(model: nn.Module) -> str | None:
    """The Hub id that the (base) model was loaded from; None for a local folder, which nobody else has."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    name = model.config._name_or_path if isinstance(model, PreTrainedModel) else ""
    return name if name and HUB_ID.fullmatch(name) and not Path(name).exists() else None


def own_tensors(
    repo_id: str, wanted: set[str], dtypes: Iterable[torch.dtype], revision: str | None
) -> tuple[str | None, set[str]]:
    """The cached commit of a Hub model that holds the most of the `wanted` hashes, and which of them.

    Args:
        repo_id: the Hub model.
        wanted: `tensor_sha256` of the tensors to look for.
        dtypes: what the checkpoint may have been cast to while it was loaded.
        revision: the branch, tag or commit that was loaded; None: every commit in the cache, main's first.

    Returns:
        (commit, hashes found); (None, nothing) where the cache has no such safetensors files.
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


def _snapshots(repo_id: str, revision: str | None) -> list[Path]:
    """Folders of the cached commits, the likeliest first."""
    named = try_to_load_from_cache(repo_id, "config.json", revision=revision or "main")
    found = [Path(named).parent] if isinstance(named, str) else []
    if revision is None:  # what was loaded by its commit is named by no branch
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
