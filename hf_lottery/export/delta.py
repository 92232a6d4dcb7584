"""A sparse update as a file: where weights changed, what they became, and what they were.

`delta.safetensors` holds, for every tensor that changed, `NAME.indices` (flat, int32 or int64), `NAME.values` and
`NAME.base_values`, in the tensor's own dtype. Without hf_lottery it is applied by
`model.get_parameter(name).data.view(-1)[indices.long()] = values`, and taken off by the same with base_values.
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
PARTS = ("indices", "values", "base_values")


class Delta:
    """Tensor name -> indices, values and base values of what changed.

    Args:
        entries: name -> (flat indices, new values, old values), each 1-D and of one length.
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
        write_tensors(path, tensors, {"format": "pt", "kind": "hf_lottery_delta", "version": "1"})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Delta:
        """Read what `save` wrote: the file, or its folder.

        Raises:
            ValueError: it is another kind of file, or damaged.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            return cls(_read(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error

    def apply_to(self, model: nn.Module) -> nn.Module:
        """Write the new values into `model`, in place. Returns the model.

        Raises:
            ValueError: `model` is not the base that the delta was taken from; nothing is written then.
        """
        return self._write(model, old=2, new=1, what="the base that this delta belongs to")

    def take_off(self, model: nn.Module) -> nn.Module:
        """Put the base's values back, bit for bit. Returns the model.

        Raises:
            ValueError: the delta is not on `model`; nothing is written then.
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
        if (file.metadata() or {}).get("kind") != "hf_lottery_delta":
            raise ValueError(f"{path} is no sparse delta: `hf-lottery export UNIT --to delta` writes one")
        keys = set(file.keys())
        names = {key.removesuffix(".indices") for key in keys if key.endswith(".indices")}
        if keys != {f"{name}.{part}" for name in names for part in PARTS}:
            raise ValueError(f"{path} is damaged: a tensor's indices, values or base_values are missing")
        entries = {n: tuple(file.get_tensor(f"{n}.{part}") for part in PARTS) for n in sorted(names)}
    for name, (indices, values, before) in entries.items():
        whole = indices.dtype in (torch.int32, torch.int64) and values.dtype == before.dtype
        if not whole or indices.dim() != 1 or not len(indices) or not indices.shape == values.shape == before.shape:
            raise ValueError(f"{path} is damaged: indices, values and base_values of '{name}' do not go together")
    return entries


def _fits(parameter: Tensor, indices: Tensor, expected: Tensor) -> bool:
    if parameter.dtype != expected.dtype or int(indices.max()) >= parameter.numel() or int(indices.min()) < 0:
        return False
    there = parameter.detach().reshape(-1)[indices.long().to(parameter.device)].cpu()
    return torch.equal(_bits(there), _bits(expected))


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers: −0 is not 0 and nan is nan, so that "exactly" means every bit."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])
