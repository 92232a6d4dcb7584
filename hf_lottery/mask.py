"""Mask: which weights of a network are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from hf_lottery.files import write_tensors
from hf_lottery.sealed import readable

MASK_FILE = "mask.safetensors"


class Mask(Mapping[str, Tensor]):
    """A mapping from parameter name to bool tensor; True = the weight is kept.

    A mask is a value: methods return new masks and never write into the tensors they were given.

    Args:
        tensors: parameter name -> bool tensor, shaped as the parameter, on any device.

    Raises:
        TypeError: a tensor is not bool (a mask is never guessed from a tensor's zeros).
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        for name, tensor in tensors.items():
            if tensor.dtype != torch.bool:
                raise TypeError(
                    f"the mask of '{name}' has dtype {tensor.dtype}; a mask is a bool tensor (True = kept). "
                    "To keep the weights that are not zero, pass `weight != 0`."
                )
        self._tensors: dict[str, Tensor | _Packed] = dict(tensors)

    @classmethod
    def ones(cls, parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Mask:
        """The dense network's mask: every weight of `parameters` (name -> tensor) is kept."""
        return cls({name: torch.ones_like(p.detach(), dtype=torch.bool) for name, p in dict(parameters).items()})

    @classmethod
    def packing(cls, tensors: Iterable[tuple[str, Tensor]]) -> Mask:
        """A mask that keeps its bits packed on the CPU, in an eighth of the memory; for masks that are seldom used.

        A tensor is unpacked again at every access.

        Args:
            tensors: (name, bool tensor) pairs, taken one at a time.
        """
        mask = cls({})
        for name, tensor in tensors:
            mask._tensors[name] = _Packed(pack_bits(tensor), tensor.shape)
        return mask

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return unpack_bits(tensor.bits, tensor.shape, name) if isinstance(tensor, _Packed) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.count():,} of {self.numel():,} weights kept, {self.density():.2%})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(
            mine.shape == other[name].shape and torch.equal(mine.cpu(), other[name].cpu())
            for name, mine in self.items()
        )

    __hash__ = None

    def count(self) -> int:
        """How many weights are kept, counted."""
        return sum(int(tensor.count_nonzero()) for tensor in self.values())

    def numel(self) -> int:
        """How many weights the mask is over, kept or not."""
        return sum(tensor.numel() for tensor in self.values())

    def density(self) -> float:
        """Kept / all weights under the mask, the papers' P_m as a fraction; 1 where there are no weights."""
        return self.count() / numel if (numel := self.numel()) else 1.0

    def sparsity(self) -> float:
        """1 − density."""
        return 1.0 - self.density()

    def counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> (kept, all)."""
        return {name: (int(tensor.count_nonzero()), tensor.numel()) for name, tensor in self.items()}

    def __and__(self, other: Mask) -> Mask:
        """Weights that both masks keep. The names must be the same."""
        self._require_same_names(other)
        return Mask({name: tensor & other[name].to(tensor.device) for name, tensor in self.items()})

    def __or__(self, other: Mask) -> Mask:
        """Weights that either mask keeps. The names must be the same."""
        self._require_same_names(other)
        return Mask({name: tensor | other[name].to(tensor.device) for name, tensor in self.items()})

    def __invert__(self) -> Mask:
        """Pruned and kept exchanged."""
        return Mask({name: ~tensor for name, tensor in self.items()})

    def to(self, device: torch.device | str) -> Mask:
        """The same mask with its tensors on `device`."""
        return Mask({name: tensor.to(device) for name, tensor in self.items()})

    def shuffled(self, generator: torch.Generator) -> Mask:
        """A random mask of the same density in every tensor (the random-mask control).

        Args:
            generator: a CPU generator; tensors are shuffled in order of their names, so one seed gives one mask.
        """
        result = dict.fromkeys(self)
        for name in sorted(self):
            tensor = self[name]
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            result[name] = tensor.flatten()[order].view_as(tensor)
        return Mask(result)

    def save(self, path: str | os.PathLike) -> None:
        """Write packed bits to a safetensors file: one uint8 tensor per name, the shapes in the file's metadata."""
        shapes = {name: list(tensor.shape) for name, tensor in self.items()}
        write_tensors(path, self.pack(), {"shapes": json.dumps(shapes)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Mask:
        """Read what `save` wrote.

        Raises:
            DamagedFile: it is not a mask's file, or not all of it.
        """
        with readable(path), safe_open(path, framework="pt") as file:
            shapes = json.loads(file.metadata()["shapes"])
            return cls.unpack({name: file.get_tensor(name) for name in shapes}, shapes)

    def pack(self) -> dict[str, Tensor]:
        """Name -> uint8 tensor of ceil(numel / 8) bytes on the CPU, in C order, most significant bit first.

        The layout of `numpy.packbits`; the bits after the last weight are 0.
        """
        return {name: self._bits(name) for name in self}

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor], shapes: Mapping[str, Iterable[int]]) -> Mask:
        """The inverse of `pack`.

        Args:
            packed: name -> uint8 tensor of ceil(numel / 8) bytes.
            shapes: name -> the parameter's shape.

        Raises:
            ValueError: a name has no shape, a tensor has the wrong length or dtype, or a bit after the last is set.
        """
        if packed.keys() != shapes.keys():
            odd = sorted(packed.keys() ^ shapes.keys())[0]
            raise ValueError(f"packed bits and shapes disagree about the tensor '{odd}'")
        return cls({name: unpack_bits(bits, shapes[name], name) for name, bits in packed.items()})

    def fingerprint(self) -> str:
        """SHA-256, in hex, over names, shapes and bits in order of names; equal exactly for equal masks."""
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name}\0{tuple(self._tensors[name].shape)}\0".encode())
            digest.update(self._bits(name).numpy().tobytes())
        return digest.hexdigest()

    def _bits(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return tensor.bits if isinstance(tensor, _Packed) else pack_bits(tensor)

    def _require_same_names(self, other: Mask) -> None:
        if self.keys() != other.keys():
            odd = sorted(self.keys() ^ other.keys())[0]
            raise ValueError(f"the masks are over different tensors: only one of them has '{odd}'")


@dataclass(frozen=True)
class _Packed:
    bits: Tensor
    shape: torch.Size


_CHUNK = 1 << 20  # weights packed at a time, a multiple of 8: bounds the temporaries


def pack_bits(tensor: Tensor) -> Tensor:
    """A bool tensor of any shape -> its bits as a uint8 CPU tensor of ceil(numel / 8) bytes."""
    flat = tensor.flatten()
    packed = np.empty((flat.numel() + 7) // 8, dtype=np.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        bits = np.packbits(flat[start : start + _CHUNK].cpu().numpy())  # most significant bit first
        packed[start // 8 : start // 8 + len(bits)] = bits
    return torch.from_numpy(packed)


def unpack_bits(packed: Tensor, shape: Iterable[int], name: str = "mask") -> Tensor:
    """The inverse of `pack_bits`: uint8 of ceil(numel / 8) bytes -> bool tensor of `shape` on the CPU."""
    shape = torch.Size(shape)
    numel = shape.numel()
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != (numel + 7) // 8:
        raise ValueError(
            f"the packed mask of '{name}' has {packed.numel()} entries of {packed.dtype}; "
            f"{tuple(shape)} takes {(numel + 7) // 8} bytes of torch.uint8"
        )
    packed_bytes, flat = packed.cpu().numpy(), np.empty(numel, dtype=bool)
    for start in range(0, numel, _CHUNK):
        stop = min(start + _CHUNK, numel)
        bits = np.unpackbits(packed_bytes[start // 8 : (stop + 7) // 8])
        if bits[stop - start :].any():
            raise ValueError(f"the packed mask of '{name}' has bits set after its last weight")
        flat[start:stop] = bits[: stop - start]
    return torch.from_numpy(flat).view(shape)
