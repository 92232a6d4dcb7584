"""Statistics over replicates: means, Student-t intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` replicates.

    Args:
        n: how many replicates.
        mean: their mean; NaN when n is 0.
        low, high: the ends of the Student-t interval of the mean; NaN when n is below 2.
        minimum, maximum: the smallest and largest value; NaN when n is 0.
    """

    n: int
    mean: float
    low: float
    high: float
    minimum: float
    maximum: float

    def __neg__(self) -> Estimate:
        return Estimate(self.n, -self.mean, -self.high, -self.low, -self.maximum, -self.minimum)


def estimate(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, min, max and the Student-t interval of the mean of independent values.

    The interval is mean ± t(n − 1) · s / √n. Where all values are equal s is 0, and the interval is the mean alone.
    """
    data = numpy.asarray(list(values), dtype=float)
    n = len(data)
    if n == 0:
        return Estimate(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    mean, minimum, maximum = float(data.mean()), float(data.min()), float(data.max())
    if n == 1:
        return Estimate(1, mean, math.nan, math.nan, minimum, maximum)
    from scipy import stats  # here, so that one replicate needs no scipy

    error = float(stats.sem(data))
    if minimum == maximum or error == 0:  # scipy answers NaN for a scale of 0
        return Estimate(n, mean, mean, mean, minimum, maximum)
    low, high = stats.t.interval(confidence, n - 1, loc=mean, scale=error)
    return Estimate(n, mean, float(low), float(high), minimum, maximum)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE) -> Estimate:
    """a − b over the replicates that both have: the interval of a paired t test.

    Args:
        a, b: replicate -> value; a replicate's samples are averaged before (see `Results.values`).
    """
    return estimate((a[replicate] - b[replicate] for replicate in sorted(a.keys() & b.keys())), confidence)
