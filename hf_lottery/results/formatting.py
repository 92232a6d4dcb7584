"""How numbers are written: densities in percent, accuracies in percent, differences in points."""

from __future__ import annotations

import math

from hf_lottery.results.metric import Metric
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


def value(number: float, metric: Metric) -> str:
    """A value of the metric: 98.12% for an accuracy of 0.9812, 23.42 for a perplexity."""
    if math.isnan(number):
        return NOTHING
    return _value(number, metric) + ("%" if metric.greater_is_better else "")


def value_range(found: Estimate, metric: Metric) -> str:
    """97.90–98.31: smallest and largest value, without a unit; empty for fewer than two replicates."""
    return f"{_value(found.minimum, metric)}–{_value(found.maximum, metric)}" if found.n >= 2 else ""


def with_range(found: Estimate, metric: Metric) -> str:
    """98.12% (97.90–98.31): the mean, and min–max when there is more than one replicate."""
    return in_brackets(value(found.mean, metric), value_range(found, metric))


def difference(number: float, metric: Metric, signed: bool = True) -> str:
    """A difference of the metric: +0.31 points for accuracies, +1.2 for perplexities."""
    if math.isnan(number):
        return NOTHING
    return _difference(number, metric, "+" if signed else "") + (" points" if metric.greater_is_better else "")


def with_interval(found: Estimate, metric: Metric) -> str:
    """+0.31 points [+0.10, +0.52]: a mean difference and its 95% interval, from two replicates on."""
    text = difference(found.mean, metric)
    if found.n < 2:
        return text
    return f"{text} [{_difference(found.low, metric, '+')}, {_difference(found.high, metric, '+')}]"


def nats(number: float) -> str:
    """A difference of losses: +0.052."""
    return NOTHING if math.isnan(number) else f"{round(number, 3) + 0.0:+.3f}".replace("-", "−")


def nats_range(found: Estimate) -> str:
    """−0.012 to +0.019: the smallest and largest difference; empty for fewer than two replicates."""
    return f"{nats(found.minimum)} to {nats(found.maximum)}" if found.n >= 2 else ""


def nats_interval(found: Estimate) -> str:
    """+0.052 [+0.041, +0.063]: a mean difference and its 95% interval, from two replicates on."""
    return nats(found.mean) + (f" [{nats(found.low)}, {nats(found.high)}]" if found.n >= 2 else "")


def steps(number: float) -> str:
    """An early-stop step: 1,040."""
    return NOTHING if math.isnan(number) else f"{number:,.0f}"


def steps_range(found: Estimate) -> str:
    """1,000–1,100: the smallest and largest step; empty if they are equal."""
    return f"{found.minimum:,.0f}–{found.maximum:,.0f}" if found.n >= 2 and found.minimum != found.maximum else ""


def steps_difference(found: Estimate) -> str:
    """+400 steps [+310, +490]: how many steps earlier, with the 95% interval."""
    text = f"{_whole(found.mean)} steps"
    if found.n >= 2:
        text += f" [{_whole(found.low)}, {_whole(found.high)}]"
    return text


def times(ratio: float) -> str:
    """A speed-up: 2.51×."""
    return NOTHING if math.isnan(ratio) else f"{ratio:.2f}×"


def in_brackets(value: str, detail: str) -> str:
    """98.12% (97.90–98.31): a value with its detail in brackets, if it has one."""
    return f"{value} ({detail})" if detail else value


def _value(number: float, metric: Metric) -> str:
    return f"{100 * number:.2f}" if metric.greater_is_better else f"{number:.4g}"


def _difference(number: float, metric: Metric, sign: str) -> str:
    # + 0.0 turns a rounded −0.0 into 0.0
    if metric.greater_is_better:
        return f"{round(100 * number, 2) + 0.0:{sign}.2f}".replace("-", "−")
    return f"{number + 0.0:{sign}.3g}".replace("-", "−")


def _whole(number: float) -> str:
    rounded = round(number)
    return f"{rounded:+,d}".replace("-", "−") if rounded else "0"
