"""The name that was probably meant, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 100  # characters; comparing takes time with the square of the length, and no name is longer


def nearest(value: object, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that is most like `value`; None if no choice is, or `value` is no text.

    Args:
        value: what was written.
        choices: what is allowed.
        cutoff: the least similarity, 0 to 1, as in `difflib`.
    """
    if not isinstance(value, str) or len(value) > LONGEST:
        return None
    close = get_close_matches(value, list(choices), n=1, cutoff=cutoff)
    return close[0] if close else None


def did_you_mean(value: object, choices: Iterable[str], otherwise: str = "") -> str:
    """`did you mean 'x'?` for the nearest choice; `otherwise` if none is near."""
    near = nearest(value, choices)
    return otherwise if near is None else f"did you mean '{near}'?"


def in_brackets(value: object, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, to put after a sentence; '' if none is near."""
    hint = did_you_mean(value, choices)
    return f" ({hint})" if hint else ""
