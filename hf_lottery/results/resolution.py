"""The resolution of a metric: the step of the grid that its values lie on, such as 1/500 for 500 test images."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy

_FINEST = 100_000  # a finer grid than 1/100,000 is as good as none
_ROUNDING = 2**-24  # of 32-bit numbers, which metrics are often measured in


def resolution(values: Iterable[float], examples: int | None = None) -> float:
    """The step of the grid that all values lie on; 0 for values on no grid, such as a loss.

    Args:
        values: finite values of one metric, as they were measured (not averaged).
        examples: how many examples the metric was measured on, where it is known: then the step is 1/examples, if the
            values lie on that grid. Else it is the coarsest grid that holds all values, which is never finer than the
            true one.
    """
    found = numpy.unique(numpy.asarray(list(values), dtype=float))
    if not len(found):
        return 0.0
    if examples and _on_grid(found, numpy.array([examples]))[0]:
        return 1 / examples
    counts = numpy.arange(1, _FINEST + 1)
    for value in found:  # each value leaves fewer
        counts = counts[_on_grid(numpy.array([value]), counts)]
    if not len(counts):
        return 0.0
    # values that are all 0 lie on every grid, so on the coarsest
    return (math.gcd(*(round(value * counts[0]) for value in found)) or 1) / int(counts[0])


def _on_grid(values: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """For each count, whether all values are multiples of 1/count, but for the rounding of 32-bit numbers."""
    multiples = numpy.outer(counts, values)
    return (abs(multiples - multiples.round()) <= _ROUNDING * abs(multiples) + 1e-9).all(axis=1)
