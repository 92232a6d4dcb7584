"""How numbers are written: densities in percent, accuracies in percent, differences in points."""

from __future__ import annotations

import math

from hf_lottery.results.results import LOWER_IS_BETTER
from hf_lottery.results.statistics import Estimate

NOTHING = "–"


def percent(fraction: float) -> str:
    """A density: 1 -> 100%, 0.5128 -> 51.3%, 0.03576 -> 3.58%, 0.00123 -> 0.123%."""
    if math.isnan(fraction):
        return NOTHING
    value = 100 * fraction
    if value == 0 or value >= 99.95:
        return f"{value:.0f}%"
    return f"{value:.1f}%" if value >= 10 else f"{value:.3g}%"


def is_fraction(metric: str) -> bool:
    """Is the metric shown in percent? Accuracy and its kin are; perplexity and loss are shown as they are."""
    return metric not in LOWER_IS_BETTER


def value(number: float, metric: str) -> str:
    """A value of the metric: 98.12% for an accuracy of 0.9812, 23.417 for a perplexity."""
    if math.isnan(number):
        return NOTHING
    return f"{100 * number:.2f}%" if is_fraction(metric) else f"{number:.4g}"


def difference(number: float, metric: str, signed: bool = True) -> str:
    """A difference of the metric: +0.31 points for accuracies, +1.2 for perplexities."""
    if math.isnan(number):
        return NOTHING
    sign = "+" if signed else ""
    # + 0.0 turns a rounded −0.0 into 0.0
    if is_fraction(metric):
        return f"{round(100 * number, 2) + 0.0:{sign}.2f}".replace("-", "−") + " points"
    return f"{number + 0.0:{sign}.3g}".replace("-", "−")


def with_range(found: Estimate, metric: str) -> str:
    """98.12% (97.90–98.31): the mean, and min–max when there is more than one replicate."""
    if found.n < 2:
        return value(found.mean, metric)
    low, high = value(found.minimum, metric).rstrip("%"), value(found.maximum, metric).rstrip("%")
    return f"{value(found.mean, metric)} ({low}–{high})"


def with_interval(found: Estimate, metric: str) -> str:
    """+0.31 points [+0.10, +0.52]: a mean difference and its 95% interval."""
    text = difference(found.mean, metric)
    if found.n < 2:
        return text
    ends = (difference(end, metric).removesuffix(" points") for end in (found.low, found.high))
    return f"{text} [{', '.join(ends)}]"


def steps(found: Estimate) -> str:
    """An early-stop step, mean over replicates, with min–max."""
    if found.n == 0:
        return NOTHING
    if found.n == 1 or found.minimum == found.maximum:
        return f"{found.mean:,.0f}"
    return f"{found.mean:,.0f} ({found.minimum:,.0f}–{found.maximum:,.0f})"


def steps_difference(found: Estimate) -> str:
    """+400 steps [+310, +490]: how many steps earlier, with the 95% interval."""
    text = f"{_whole(found.mean)} steps"
    if found.n >= 2:
        text += f" [{_whole(found.low)}, {_whole(found.high)}]"
    return text


def _whole(number: float) -> str:
    rounded = round(number)
    return f"{rounded:+,d}".replace("-", "−") if rounded else "0"


def times(ratio: float) -> str:
    """A speed-up: 2.51×."""
    return NOTHING if math.isnan(ratio) else f"{ratio:.2f}×"
