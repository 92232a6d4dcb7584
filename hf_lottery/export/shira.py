"""A sparse update as PEFT's SHiRA adapter."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import ShiraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS_FILE
from torch import Tensor

from hf_lottery.export.delta import Delta
from hf_lottery.files import write_tensors


def save_shira(
    folder: str | os.PathLike,
    delta: Delta,
    shapes: dict[str, torch.Size],
    base_model: str | None,
    task_type: str | None = "CAUSAL_LM",
) -> Path:
    """Write a delta as adapter_config.json and adapter_model.safetensors of type SHiRA.

    SHiRA has one r for all modules and exactly r · (in + out) entries in each: here r is the least that holds every
    module's changes, and the other entries are zero. PEFT adds the update to the base weights, so the sums may differ
    from the trained weights in the last bit; `--to delta` is exact.

    Args:
        folder: is created if it does not exist.
        delta: the weights that changed.
        shapes: tensor name -> shape.
        base_model: Hub id or folder from which PEFT loads the base model; None: the user must name it when loading.
        task_type: PEFT's.

    Raises:
        ValueError: nothing changed, a tensor changed that is not a linear layer's weight, or a module would need more
            entries than it has.

    Source: SHiRA, Bhardwaj et al. 2024 (arXiv 2406.13175), as in peft.tuners.shira.
    """
    r = _least_rank(delta, shapes)
    tensors = {}
    for name, (indices, new, old) in delta.entries.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        indices, values = _filled(indices.long(), new.float() - old.float(), shapes[name], r)
        tensors[f"{module}.shira_weight"] = values
        tensors[f"{module}.shira_indices"] = torch.stack([indices // shapes[name][1], indices % shapes[name][1]]).int()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = ShiraConfig(
        r=r,
        target_modules=sorted(name.removesuffix(".weight") for name in delta.entries),
        task_type=task_type,
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    return folder


def _least_rank(delta: Delta, shapes: dict[str, torch.Size]) -> int:
    """The least r with which every module has room for its changes."""
    if not delta.entries:
        raise ValueError("no weight changed: there is no update to export")
    for name in delta.entries:
        if len(shapes[name]) != 2 or not name.endswith(".weight"):
            raise ValueError(
                f"SHiRA holds updates of linear layers' weights, and '{name}' changed too: use --to delta"
            )
    r = max(-(-len(indices) // sum(shapes[name])) for name, (indices, _, _) in delta.entries.items())
    for name in delta.entries:
        rows, columns = shapes[name]
        if r * (rows + columns) > rows * columns:
            raise ValueError(
                f"SHiRA has one r for all modules, here {r}: more entries than '{name}' has: use --to delta"
            )
    return r


def _filled(indices: Tensor, values: Tensor, shape: torch.Size, r: int) -> tuple[Tensor, Tensor]:
    """Exactly r · (rows + columns) entries: the changed ones, and the first of the others with the value 0.

    Args:
        indices: flat indices of the changed entries, int64 [n].
        values: their changes, float [n].
        shape: of the weight.
        r: of the adapter.

    Returns:
        Flat indices, in ascending order, and changes.
    """
    count = r * sum(shape)
    free = torch.ones(shape.numel(), dtype=torch.bool)
    free[indices] = False
    more = free.nonzero().flatten()[: count - len(indices)]
    order = torch.cat([indices, more]).argsort()
    padded = torch.cat([values, torch.zeros(len(more))])
    return torch.cat([indices, more])[order], padded[order]
