"""A sparse update as a file: which weights changed, their new values and their old ones.

`delta.safetensors` holds, for every tensor that changed, `NAME.indices` (flat, int32 or int64), `NAME.values` and
`NAME.base_values`, in the tensor's own dtype. Without hf_lottery it is applied by
`model.get_parameter(name).data.view(-1)[indices.long()] = values`, and removed by the same with base_values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hf_lottery.distributed.processes import named_tensors
from hf_lottery.files import write_tensors

FILE = "delta.safetensors"
KIND = "hf_lottery_delta"  # in the file's metadata
PARTS = ("indices", "values", "base_values")


class Delta:
    """The weights that changed, with their new and old values.

    Args:
        entries: tensor name -> (flat indices, new values, old values), each 1-D, all three of the same length.
    """

    def __init__(self, entries: Mapping[str, tuple[Tensor, Tensor, Tensor]]):
        self.entries = dict(entries)

    @classmethod
    def between(cls, base: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> Delta:
        """What changed from `base` to `trained`, bit for bit; both hold the same names, shapes and dtypes."""
        entries = {}
        for name, new in trained.items():
            old, new = base[name].flatten(), new.flatten()
            moved = (_bits(old) != _bits(new)).nonzero().flatten()
            if len(moved):
                dtype = torch.int32 if old.numel() <= torch.iinfo(torch.int32).max else torch.int64
                entries[name] = (moved.to(dtype), new[moved], old[moved])
        return cls(entries)

    def count(self) -> int:
        """How many weights changed."""
        return sum(len(indices) for indices, _, _ in self.entries.values())

    def save(self, folder: str | os.PathLike) -> Path:
        """Write delta.safetensors into `folder`; returns its path."""
        path = Path(folder) / FILE
        tensors = {
            f"{name}.{part}": tensor.contiguous()
            for name, entry in self.entries.items()
            for part, tensor in zip(PARTS, entry, strict=True)
        }
        write_tensors(path, tensors, {"format": "pt", "kind": KIND, "version": "1"})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Delta:
        """Read what `save` wrote: the file, or its folder.

        Raises:
            ValueError: the file is damaged, or not a delta.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            return cls(_read(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or not a safetensors file: {error}") from error

    def apply_to(self, model: nn.Module) -> nn.Module:
        """Write the new values into `model`, in place. Returns the model.

        Raises:
            ValueError: `model` does not have the delta's old values; then nothing is written.
        """
        return self._write(model, old=2, new=1, what="the base that this delta belongs to")

    def take_off(self, model: nn.Module) -> nn.Module:
        """Put the base's values back, bit for bit. Returns the model.

        Raises:
            ValueError: `model` does not have the delta's new values; then nothing is written.
        """
        return self._write(model, old=1, new=2, what="a model that this delta is on")

    @torch.no_grad()
    def _write(self, model: nn.Module, old: int, new: int, what: str) -> nn.Module:
        state = named_tensors(model)
        for name, entry in self.entries.items():
            if name not in state:
                raise ValueError(f"this is not {what}: it has no '{name}'")
            if not _fits(state[name], entry[0], entry[old]):
                raise ValueError(
                    f"this is not {what}: '{name}' is the first tensor that differs; load the base model in "
                    f"{str(entry[old].dtype).removeprefix('torch.')}, unchanged"
                )
        for name, entry in self.entries.items():
            flat = state[name].detach().flatten().clone()
            flat[entry[0].long().to(flat.device)] = entry[new].to(flat.device)
            state[name].copy_(flat.view(state[name].shape))
        return model


def _read(path: Path) -> dict[str, tuple[Tensor, ...]]:
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("kind") != KIND:
            raise ValueError(f"{path} is not a sparse delta: `hf-lottery export NETWORK --to delta` writes one")
        names = _names(path, set(file.keys()))
        entries = {n: tuple(file.get_tensor(f"{n}.{part}") for part in PARTS) for n in names}
    for name, entry in entries.items():
        if not _go_together(*entry):
            raise ValueError(f"{path} is damaged: indices, values and base_values of '{name}' do not fit together")
    return entries


def _names(path: Path, keys: set[str]) -> list[str]:
    """The names of the tensors in a delta's file, from its keys."""
    names = {key.removesuffix(".indices") for key in keys if key.endswith(".indices")}
    if keys != {f"{name}.{part}" for name in names for part in PARTS}:
        raise ValueError(f"{path} is damaged: a tensor's indices, values or base_values are missing")
    return sorted(names)


def _go_together(indices: Tensor, values: Tensor, before: Tensor) -> bool:
    dtypes = indices.dtype in (torch.int32, torch.int64) and values.dtype == before.dtype
    return dtypes and indices.dim() == 1 and len(indices) > 0 and indices.shape == values.shape == before.shape


def _fits(parameter: Tensor, indices: Tensor, expected: Tensor) -> bool:
    if parameter.dtype != expected.dtype or int(indices.max()) >= parameter.numel() or int(indices.min()) < 0:
        return False
    there = parameter.detach().reshape(-1)[indices.long().to(parameter.device)].cpu()
    return torch.equal(_bits(there), _bits(expected))


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, to compare every bit: −0 differs from 0, and nan is equal to the same nan."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])
