"""mask.safetensors and rewind.safetensors of a ticket: written, and read with checks.

The sizes that a file states are compared with the size of the file before memory is allocated for them.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_lottery.files import write_tensors
from hf_lottery.mask import Mask, pack_bits
from hf_lottery.sealed import file_record
from hf_lottery.ticket.document import TicketError
from hf_lottery.ticket.mask_codec import CodecError, decode, encode

_MAX_HEADER = 64 << 20
# A compressed mask may become this many times larger than its bytes in the file (a mask of density 0.1% is 88 times
# smaller than its bits), or have this many bytes, whichever is more. Only a model of that size allows more.
_MAX_GROWTH, _FREE_GROWTH = 128, 16 << 20
# the same for θ_k with zeros for its pruned weights: a rewind.safetensors of density 0.1% is 1,000 times smaller
_MAX_ZEROS, _FREE_ZEROS = 4096, 256 << 20


class StoredMask:
    """A mask in mask.safetensors. Its bits are decoded by `unpack`, and never to more than the size of its shapes.

    Args:
        path: the file; its SHA-256 has been compared with ticket.json.
        shapes: name -> shape of each masked parameter.
        kept: name -> how many weights ticket.json says are kept.
        encoding: `packed` or `deflate`.
        fingerprint: `Mask.fingerprint()` of the mask.

    Raises:
        TicketError: the file holds other names, or bits that do not belong to these shapes.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, torch.Size], kept: Mapping[str, int], encoding: str, fingerprint: str
    ):
        self.shapes = dict(shapes)
        self._kept, self._encoding, self._fingerprint = kept, encoding, fingerprint
        with _opened(path) as file:
            _require_same_names(path, file.keys(), self.shapes)
            for name, shape in self.shapes.items():
                slice_ = file.get_slice(name)
                length = slice_.get_shape()
                if slice_.get_dtype() != "U8" or len(length) != 1:
                    raise TicketError(f"{path.name}: '{name}' is not a list of bytes")
                if encoding == "packed" and length[0] != _bytes_of(shape):
                    raise TicketError(
                        f"{path.name}: '{name}' has {length[0]} bytes; "
                        f"the bits of {tuple(shape)} take {_bytes_of(shape)}"
                    )
            self._coded = {name: file.get_tensor(name).numpy().copy() for name in self.shapes}

    def require_bounded(self) -> None:
        """Raise TicketError if the bits are so much larger than their file that it may be made to fill memory."""
        bits, coded = sum(map(_bytes_of, self.shapes.values())), sum(map(len, self._coded.values()))
        if bits > max(_MAX_GROWTH * coded, _FREE_GROWTH):
            raise TicketError(
                f"the mask's {coded:,} bytes stand for {8 * bits:,} weights, too many to unpack without a model; "
                "`ticket.apply_to(model)` unpacks them for a model that has so many"
            )

    def unpack(self) -> Mask:
        """The mask itself, checked against the counts and the fingerprint in ticket.json."""
        digest = hashlib.sha256()
        tensors = {}
        for name in sorted(self.shapes):
            shape = self.shapes[name]
            numel = shape.numel()
            packed = self._coded[name] if self._encoding == "packed" else self._decode(name, numel)
            digest.update(f"{name}\0{tuple(shape)}\0".encode())
            digest.update(packed)
            bits = np.unpackbits(packed, count=numel)
            kept = int(np.count_nonzero(bits))
            # the second comparison finds bits that are set after the last weight
            if kept != self._kept[name] or int(np.bitwise_count(packed).sum(dtype=np.int64)) != kept:
                raise TicketError(
                    f"the mask of '{name}' keeps {kept} weights, and ticket.json says {self._kept[name]}"
                )
            tensors[name] = torch.from_numpy(bits).view(torch.bool).view(shape)
        if digest.hexdigest() != self._fingerprint:
            raise TicketError("the mask is not the one whose fingerprint ticket.json gives; download the ticket again")
        return Mask({name: tensors[name] for name in self.shapes})

    def _decode(self, name: str, numel: int) -> np.ndarray:
        try:
            return decode(self._coded[name].tobytes(), numel)
        except CodecError as error:
            raise TicketError(f"the mask of '{name}' is damaged: {error}") from None


class StoredRewind:
    """θ_k in rewind.safetensors: the kept values of masked tensors, all values of the others.

    Args:
        path: the file; its SHA-256 has been compared with ticket.json. Not opened where `table` is empty.
        table: name -> its record in ticket.json, of the tensors that are in the file.
        step: k.

    Raises:
        TicketError: the file holds other names, dtypes or numbers of values than `table` says.
    """

    def __init__(self, path: Path, table: Mapping[str, Mapping[str, Any]], step: int):
        self.table, self.step, self._size = table, step, path.stat().st_size if table else 0
        if not table:
            return
        self._file = _opened(path)  # kept open, so that the values can be read after the folder has been removed
        _require_same_names(path, self._file.keys(), table)
        for name, entry in table.items():
            slice_ = self._file.get_slice(name)
            expected = [entry["kept"]] if entry["stored"] == "survivors" else entry["shape"]
            if slice_.get_shape() != expected or _DTYPE_NAMES.get(slice_.get_dtype()) != entry["dtype"]:
                raise TicketError(
                    f"{path.name}: '{name}' has shape {slice_.get_shape()} and dtype {slice_.get_dtype()}; "
                    f"ticket.json says {expected} and {entry['dtype']}"
                )

    def require_bounded(self) -> None:
        """Raise TicketError if the values are so much larger than their file that it may be made to fill memory."""
        size = sum(math.prod(e["shape"]) * _BYTES[e["dtype"]] for e in self.table.values())
        if size > max(_MAX_ZEROS * self._size, _FREE_ZEROS):
            raise TicketError(
                f"the rewind point's {self._size:,} bytes stand for {size:,}, too many to unpack without a model; "
                "`ticket.apply_to(model)` unpacks them for a model that has so many"
            )

    def value(self, name: str, mask: Mapping[str, Tensor]) -> Tensor:
        """θ_k of one tensor, in its own dtype on the CPU; a weight that is not in the file is 0.

        Args:
            name: a name in `table`.
            mask: parameter name -> bool tensor, True = kept.
        """
        value = self._file.get_tensor(name)
        if self.table[name]["stored"] == "dense":
            return value.clone()  # in memory of its own: the file's may not be written
        return torch.zeros(mask[name].shape, dtype=value.dtype).masked_scatter_(mask[name].cpu(), value)


def write_mask(path: Path, mask: Mask, compress: bool) -> str:
    """Write `mask` as packed bits, or compressed to within 5% of their entropy. Returns the `mask_encoding`."""
    tensors = {name: pack_bits(tensor) for name, tensor in mask.items()}
    if compress:
        tensors = {
            name: torch.frombuffer(bytearray(encode(bits.numpy(), mask[name].numel())), dtype=torch.uint8)
            for name, bits in tensors.items()
        }
    write_tensors(path, tensors, {"format": "pt"})
    return "deflate" if compress else "packed"


def write_rewind(path: Path, values: Mapping[str, Tensor], mask: Mapping[str, Tensor], dense: Iterable[str]) -> None:
    """Write θ_k: of the tensors in `dense` all values, of the others the kept values in C order.

    Args:
        path: the file to write.
        values: name -> value of every tensor to write.
        mask: name -> bool tensor, True = kept, of at least the tensors that are not in `dense`.
        dense: names.
    """
    dense = set(dense)
    tensors = {
        name: (value if name in dense else value[mask[name].cpu()]).contiguous() for name, value in values.items()
    }
    write_tensors(path, tensors, {"format": "pt"})


def require_file(path: Path, record: Mapping[str, Any]) -> None:
    """Raise TicketError unless `path` is, byte for byte, the file that ticket.json lists."""
    if not path.is_file():
        raise TicketError(f"the ticket has no file {path.name}, which its ticket.json lists; download it again")
    size = path.stat().st_size
    if size != record["bytes"]:
        raise TicketError(f"{path.name} has {size} bytes and ticket.json says {record['bytes']}; download it again")
    if file_record(path) != record:
        raise TicketError(
            f"{path.name} is not the file that ticket.json lists (its sha256 differs); download it again"
        )


def _opened(path: Path):
    """Open a safetensors file after its header's size has been checked. Errors become TicketError."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if len(head) < 8 or struct.unpack("<Q", head)[0] > min(_MAX_HEADER, path.stat().st_size):
            raise TicketError(f"{path.name} is not a safetensors file, or its header is larger than {_MAX_HEADER:,}")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TicketError(f"{path.name} cannot be read: {ascii(str(error))[:200]}") from None


def _require_same_names(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    odd = sorted(set(found) ^ set(expected))
    if odd:
        raise TicketError(f"{path.name} and ticket.json disagree about the tensor {ascii(odd[0])[:200]}")


def _bytes_of(shape: torch.Size) -> int:
    return (math.prod(shape) + 7) // 8


_BYTES = {
    **{"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1},
}
_DTYPE_NAMES = {
    **{"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}
