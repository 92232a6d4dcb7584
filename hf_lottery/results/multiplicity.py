"""Many tests, one error rate: Holm's correction, and the fixed sequence.

Both keep the family-wise error: the probability that any of the hypotheses is rejected that are true. Neither assumes
anything about how the tests depend on each other; here they share the dense network, so they do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float], level: float) -> set[Key]:
    """The hypotheses that are rejected, at a family-wise error of `level`.

    From the smallest p value on: the i-th of m (from 0) is rejected if it and all before it are at most level/(m − i).

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    rejected: set[Key] = set()
    for key in sorted(p_values, key=lambda key: p_values[key]):
        if p_values[key] > level / (len(p_values) - len(rejected)):
            break
        rejected.add(key)
    return rejected


def fixed_sequence(keys: Sequence[Key], p_values: Mapping[Key, float], level: float) -> list[Key]:
    """The hypotheses that are rejected in an order that was fixed before, at a family-wise error of `level`.

    Each is tested at the whole level, and the first that is not rejected ends the sequence.

    Source: Maurer, Hothorn & Lehmacher 1995; Wiens 2003, section 1.
    """
    rejected: list[Key] = []
    for key in keys:
        if p_values[key] > level:
            break
        rejected.append(key)
    return rejected
