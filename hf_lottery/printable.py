"""Text for a terminal: what a file from elsewhere holds cannot move the cursor, reorder or flood a message."""

from __future__ import annotations

from typing import Any

LONGEST_LINE = 1000  # characters; the middle of a longer line is left out: a message names its subject first,
_TAIL = 200  # and says what to do last
MOST_LINES = 100


def shown(value: Any, longest: int = 80) -> str:
    """The repr of a value for an error message, cut. A whole number of thousands of digits has none."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a whole number of more than 64 bits"
    text = repr(value[: 2 * longest] if isinstance(value, str) else value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def one_line(text: str) -> str:
    r"""`text` as one line: unprintable characters as `\n`, `\x1b`, `\u202e`, and at most LONGEST_LINE characters."""
    if len(text) > 2 * LONGEST_LINE:  # cut before escaping, which is slow for megabytes
        text = _without_middle(text, LONGEST_LINE)
    # not printable are control characters, invisible ones that reorder text (bidi), unknown ones, line separators
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return escaped if len(escaped) <= LONGEST_LINE else _without_middle(escaped, LONGEST_LINE)


def some_lines(text: str) -> str:
    """Each line of `text` as `one_line` gives it; after MOST_LINES of them, how many are left out."""
    lines = text.split("\n")
    left_out = [f"… and {len(lines) - MOST_LINES} more lines"] if len(lines) > MOST_LINES else []
    return "\n".join([one_line(line) for line in lines[:MOST_LINES]] + left_out)


def _without_middle(text: str, length: int) -> str:
    return f"{text[: length - _TAIL]} … ({len(text) - length:,} characters left out) … {text[-_TAIL:]}"
