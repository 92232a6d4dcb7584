"""Changes of bytes, of JSON documents and of safetensors files, drawn from a random generator."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

WORDS = (
    "",
    "x",
    "weight",
    "ticket",
    "dense",
    "/etc/passwd",
    "../x",
    "os.system",
    "\x1b[2J",
    "\u202e",
    "a" * 5000,
    "nan",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    1 << 16,
    1 << 31,
    1 << 40,
    (1 << 48) + 1,
    1 << 63,
    10**29,
    10**40,
    0.5,
    -0.0,
    1e300,
    1e-300,
)
ODD: tuple[Any, ...] = (*WORDS, *NUMBERS, None, True, False, [], {}, [[]], [1, 2], {"a": 1}, [None], [0] * 99)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` flipped, cut, repeated, filled or emptied in one to four places."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 8, 64, 1024)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[:end] + data[at:end] + data[end:]
        elif kind == 4:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
        else:
            data = data[:at] + rng.choice((b"\0", b"\xff")) * (end - at) + data[end:]
    return data


def mutated_json(document: Any, rng: random.Random) -> Any:
    """A copy of a JSON document with one to three of its values replaced, removed, doubled, exchanged or added."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        parents = [value for value in _containers(document) if value]
        if not parents:
            return rng.choice(ODD)
        parent = rng.choice(parents)
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other = rng.choice(parents)
            parent[key] = json.loads(
                json.dumps(rng.choice(list(other.values()) if isinstance(other, dict) else other))
            )
        elif kind == 2 and isinstance(parent, dict):
            parent[rng.choice((*WORDS, key + "x", key[:-1]))] = parent.pop(key)
        elif kind == 3 and isinstance(parent, list):
            parent.extend(parent * rng.choice((1, 3)))
        elif kind == 4 and type(parent[key]) in (int, float):
            parent[key] = rng.choice((parent[key] + 1, -parent[key], parent[key] * 1000, parent[key] / 3))
        elif kind == 5:
            parent[key] = [parent[key]]
        else:
            parent[key] = json.loads(json.dumps(rng.choice(ODD)))
    return document


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with its header changed as JSON, its length changed, or its values changed."""
    length = struct.unpack("<Q", data[:8])[0]
    header, values = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(4)
    if kind == 0:
        header = json.dumps(mutated_json(json.loads(header), rng)).encode("utf-8", "surrogatepass")
    elif kind == 1:
        values = mutated_bytes(values, rng)
    elif kind == 2:
        return struct.pack("<Q", rng.choice((0, 1, length + 1, length - 1, 1 << 32, 1 << 63))) + data[8:]
    else:
        return mutated_bytes(data, rng)
    return struct.pack("<Q", len(header)) + header + values


def _containers(value: Any) -> list[Any]:
    if not isinstance(value, dict | list):
        return []
    below = value.values() if isinstance(value, dict) else value
    return [value, *(found for item in below for found in _containers(item))]
