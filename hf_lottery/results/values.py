"""The values of one line of results: what counts as one, and what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hf_lottery.results.diverged import Diverged
from hf_lottery.results.forgetting import AFTER, BEFORE, FORGETTING

Line = Mapping[str, Any]


def value_of(line: Line, key: str) -> float | None:
    """A line's value of `key`; None if it has none, or none that is finite, or if the network diverged.

    `key` may be FORGETTING too, which is the difference of two values.
    """
    if key == FORGETTING:
        before, after = value_of(line, BEFORE), value_of(line, AFTER)
        return None if before is None or after is None else after - before
    value = None if Diverged.of_line(line) else line.get(key)
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if right else None


def count_of(line: Line, key: str) -> int | None:
    """A line's count; None if it has none, or none that is possible."""
    value = line.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else None
