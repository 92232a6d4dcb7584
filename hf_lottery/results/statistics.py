"""Statistics over replicates: means, Student-t intervals, paired differences, and the replicates that decide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy

CONFIDENCE = 0.95
POWER = 0.8  # "would probably decide": with this probability
MOST_REPLICATES = 1000  # a greater number is of no use to anyone


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` replicates.

    Args:
        n: how many replicates.
        mean: their mean; NaN when n is 0.
        low, high: the ends of the Student-t interval of the mean; NaN when n is below 2.
        minimum, maximum: the smallest and largest value; NaN when n is 0.
        error: the standard error of the mean; NaN when n is below 2.
    """

    n: int
    mean: float
    low: float
    high: float
    minimum: float
    maximum: float
    error: float = math.nan

    def __neg__(self) -> Estimate:
        return Estimate(self.n, -self.mean, -self.high, -self.low, -self.maximum, -self.minimum, self.error)

    def p_above(self, bound: float) -> float:
        """The one-sided p value of Student's t test that the true mean is not above `bound`; 1 when n is below 2."""
        if self.n < 2:
            return 1.0
        if self.error == 0:
            return 0.0 if self.mean > bound else 1.0
        from scipy import special  # here, so that one replicate needs no scipy

        return float(special.stdtr(self.n - 1, -(self.mean - bound) / self.error))

    def p_below(self, bound: float) -> float:
        """The one-sided p value that the true mean is not below `bound`; 1 when n is below 2."""
        return (-self).p_above(-bound)


def estimate(values: Iterable[float], confidence: float = CONFIDENCE, resolution: float = 0.0) -> Estimate:
    """Mean, min, max and the Student-t interval of the mean of independent values.

    The interval is mean ± t(n − 1) · s / √n.

    Args:
        values: one per replicate, finite.
        confidence: of the interval.
        resolution: the step of the grid that the values are measured on; s is never taken as smaller, because equal
            values on a grid do not show that there is no variation. With 0 and equal values the interval is the mean.
    """
    data = numpy.asarray(list(values), dtype=float)
    n = len(data)
    if n == 0:
        return Estimate(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    mean, minimum, maximum = float(data.mean()), float(data.min()), float(data.max())
    if n == 1:
        return Estimate(1, mean, math.nan, math.nan, minimum, maximum)
    from scipy import special

    spread = 0.0 if minimum == maximum else float(data.std(ddof=1))
    error = max(spread, resolution) / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * error
    return Estimate(n, mean, mean - half, mean + half, minimum, maximum, error)


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE, resolution: float = 0.0
) -> Estimate:
    """a − b over the replicates that both have: the interval of a paired t test.

    Args:
        a, b: replicate -> value; a replicate's samples are averaged before (see `Results.values`).
        confidence, resolution: as for `estimate`.
    """
    differences = (a[replicate] - b[replicate] for replicate in sorted(a.keys() & b.keys()))
    return estimate(differences, confidence, resolution)


def replicates_to_decide(distance: float, deviation: float, level: float, power: float = POWER) -> int | None:
    """How many replicates a one-sided t test needs, to see with probability `power` that a mean is above a bound.

    Args:
        distance: true mean − bound, in the metric's units.
        deviation: standard deviation of the paired differences, in the same units.
        level: error rate of the test.
        power: the probability of a decision.

    Returns:
        At least 3; None if more than MOST_REPLICATES are needed.

    Source: the power of Student's t test, by the noncentral t distribution.
    """
    from scipy import special

    def enough(n: int) -> bool:
        critical = special.stdtrit(n - 1, 1 - level)
        return 1 - special.nctdtr(n - 1, distance * math.sqrt(n) / deviation, critical) >= power

    if not distance > 0 or not math.isfinite(deviation):
        return None
    if deviation == 0:
        return 3
    low, high = 2, 3
    while not enough(high):
        low, high = high, 2 * high
        if low > MOST_REPLICATES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= MOST_REPLICATES else None
