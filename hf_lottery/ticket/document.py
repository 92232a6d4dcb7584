"""ticket.json as bytes: bounded JSON in and out, with a digest of itself.

A ticket comes from a stranger, so nothing here trusts its input: the size, the depth, the length of numbers and
repeated keys are all bounded before anybody looks at a value.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

MAX_BYTES = 64 << 20
_MAX_DIGITS = 30
_BLANK = "0" * 64  # stands for the digest while the digest is computed


class TicketError(ValueError):
    """A ticket cannot be read, is damaged, or does not belong to this model; the message is one sentence."""


def dump(document: dict[str, Any]) -> bytes:
    """`document` as the bytes of a ticket.json, its `sha256` field over all of these bytes (itself blank) filled in.

    Numbers that JSON cannot hold (nan, inf) become null.
    """
    document = {**_finite(document), "sha256": _BLANK}
    text = json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    before, _, after = text.rpartition(_BLANK)  # the last field; other hashes may be all zeros too
    return (before + _digest(text.encode()) + after).encode()


def parse(data: bytes) -> dict[str, Any]:
    """The object in `data`, its digest not yet checked (see `check_digest`).

    Raises:
        TicketError: not a JSON object, too large or too deep, a key given twice, or a number that is not finite.
    """
    if len(data) > MAX_BYTES:
        raise TicketError(f"ticket.json has {len(data):,} bytes; at most {MAX_BYTES:,} are read")
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
        raise TicketError("ticket.json is nested too deeply; it is damaged, or not a ticket's") from None
    except ValueError as error:
        raise TicketError(f"ticket.json is damaged, or not a ticket's: {error}") from None
    if not isinstance(document, dict):
        raise TicketError(f"ticket.json holds a {type(document).__name__}; it must be an object")
    return document


def check_digest(data: bytes, document: dict[str, Any]) -> None:
    """Raise TicketError unless `data` carries the digest of itself, so that not one byte of it has changed."""
    digest = document.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest) or data.count(digest.encode()) != 1:
        raise TicketError("ticket.json does not carry one sha256 of itself; download or save the ticket again")
    if _digest(data.replace(digest.encode(), _BLANK.encode())) != digest:
        raise TicketError("ticket.json has changed since it was written (its sha256 differs); download it again")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise TicketError("ticket.json gives a key twice; it is damaged, or made to be read in two ways")
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
