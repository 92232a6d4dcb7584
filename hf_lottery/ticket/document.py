"""ticket.json as bytes: JSON with limits, and with a SHA-256 of itself.

A ticket comes from a stranger, so its size, depth, length of numbers and repeated keys are checked before any value
is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
MAX_VALUES = 1 << 22  # an empty list is two bytes of JSON, and takes 64 in memory
_MAX_DIGITS = 30
_BLANK = "0" * 64  # in the place of the digest while the digest is computed


class TicketError(ValueError):
    """A ticket cannot be read, is damaged, or does not belong to this model; the message is one sentence."""


def dump(document: dict[str, Any]) -> bytes:
    """The bytes of a ticket.json. Its field `sha256` is computed over these bytes with 64 zeros in its place.

    Numbers that JSON does not have (nan, inf) become null.
    """
    document = {**_finite(document), "sha256": _BLANK}
    text = json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    before, _, after = text.rpartition(_BLANK)  # the last field; other hashes may be all zeros too
    return (before + _digest(text.encode()) + after).encode()


def read_bounded(path: Path) -> bytes:
    """The bytes of a small file.

    Raises:
        TicketError: the file has more than MAX_BYTES; then it is not read.
    """
    _require_size(path.name, path.stat().st_size)
    return path.read_bytes()


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Its digest is not checked here (see `check_digest`).

    Raises:
        TicketError: not a JSON object, too large or too deep, a key given twice, or a number that is not finite.
    """
    _require_size("ticket.json", len(data))
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > MAX_VALUES:
        raise TicketError(f"ticket.json holds about {values:,} values; at most {MAX_VALUES:,} are read")
    try:
        document = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_float,
        )
    except TicketError:
        raise
    except RecursionError:
        raise TicketError("ticket.json is nested too deeply; it is damaged, or not from a ticket") from None
    except ValueError as error:
        raise TicketError(f"ticket.json is damaged, or not from a ticket: {error}") from None
    if not isinstance(document, dict):
        raise TicketError(f"ticket.json holds a {type(document).__name__}; it must be an object")
    return document


def check_digest(data: bytes, document: dict[str, Any]) -> None:
    """Raise TicketError unless the `sha256` in `document` is that of `data`, so that no byte of it has changed."""
    digest = document.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest) or data.count(digest.encode()) != 1:
        raise TicketError("ticket.json does not hold one sha256 of itself; download or save the ticket again")
    if _digest(data.replace(digest.encode(), _BLANK.encode())) != digest:
        raise TicketError("ticket.json has changed since it was written (its sha256 differs); download it again")


def _require_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise TicketError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise TicketError("ticket.json gives a key twice, so that it can be read in two ways; download it again")
    return result


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise TicketError(f"ticket.json holds a number of {len(text)} digits; at most {_MAX_DIGITS} are read")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise TicketError(f"ticket.json holds the number {text[:_MAX_DIGITS]}; numbers must be finite")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
