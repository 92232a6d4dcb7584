"""Which learning rate a control, the dense network or a ticket is shown and judged at: the best by validation.

One is chosen for each control and round, over all replicates together. For the comparison at the early-stop step it is
the same one. Test values are never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hf_lottery.layout import TICKET, Network
from hf_lottery.learning_rates import OF_RECIPE
from hf_lottery.results.diverged import Diverged, left_out
from hf_lottery.results.metric import Metric
from hf_lottery.results.values import Line, value_of

Group = tuple[str, int]  # control and round
_TIE = 1e-9  # relative; two means that differ by less are equal but for rounding


@dataclass(frozen=True)
class Tried:
    """One of the learning rates of a control at a round.

    Args:
        rate: the learning rate.
        mean: of the validation values that it was compared by; NaN if it was not compared, or has none.
        count: how many networks are in the mean.
        lost: how many networks diverged, stand on one that did, or have no finite validation value.
        unfinished: how many networks are missing.
    """

    rate: float
    mean: float
    count: int
    lost: int
    unfinished: int


@dataclass(frozen=True)
class Choice:
    """The learning rate that a control is taken at, in one round.

    Args:
        rate: the one chosen.
        own: the recipe's own.
        tried: all of them, the smallest first.
        taken: the lines of the networks that are shown and judged.
        key: of the validation values.
    """

    rate: float
    own: float
    tried: list[Tried]
    taken: list[Line]
    key: str

    @property
    def measure(self) -> str:
        """What was compared, in words: validation accuracy."""
        return self.key.replace("eval_", "validation ", 1)

    @property
    def unfinished(self) -> list[float]:
        """The rates that lack networks which another rate has."""
        return [one.rate for one in self.tried if one.unfinished]


def choices(lines: Sequence[Line], metric: Metric) -> dict[Group, Choice]:
    """For each control and round, the learning rate with the best mean validation value at the end of training.

    Only rates of which every network is finished are compared; if there are none, those with the most. A network that
    diverged, or stands on one that did, is the worst outcome: only the rates with the fewest of these are compared.
    Their means are over the networks (replicates and samples) of which all of them have a value. If means are equal,
    the recipe's own rate is taken, then the smallest.

    Args:
        lines: of all finished networks. Those of an experiment without other learning rates have no choice.
        metric: which its value at validation is compared by; the loss, if it was not measured at validation.

    Returns:
        (control, round) -> the choice, also where there is one rate only.
    """
    lines = [line for line in lines if OF_RECIPE in line]
    if not lines:
        return {}
    key, sign = f"eval_{metric}", 1 if metric.greater_is_better else -1
    if all(value_of(line, key) is None for line in lines):
        key, sign = "eval_loss", -1
    groups: dict[Group, dict[Network, Line]] = {}
    rates: dict[str, set[float | None]] = {}
    for line in lines:
        network = Network.of_line(line)
        groups.setdefault((network.control, network.round), {})[network] = line
        rates.setdefault(network.control, set()).add(network.learning_rate)
    diverged = [Network.of_line(line) for line in lines if Diverged.of_line(line) is not None]
    return {
        group: _Group(found, sorted(rates[group[0]], key=lambda rate: rate or 0.0), diverged, key).choice(sign)
        for group, found in groups.items()
    }


@dataclass(frozen=True)
class _Group:
    """The finished networks of one control and round.

    Args:
        found: network -> its line.
        rates: all of the control's; None stands for the recipe's own, and comes first, then the smallest.
        diverged: networks of the experiment.
        key: of the validation values.
    """

    found: Mapping[Network, Line]
    rates: Sequence[float | None]
    diverged: Sequence[Network]
    key: str

    @cached_property
    def places(self) -> list[Network]:
        """The networks that every rate should have, without their rates."""
        return sorted({replace(network, learning_rate=None) for network in self.found})

    def choice(self, sign: int) -> Choice:
        values = {rate: self._values(rate) for rate in self.rates}
        lost = {rate: self._lost(rate) for rate in self.rates}
        missing = {rate: len(self.places) - lost[rate] - len(values[rate]) for rate in self.rates}
        whole = [rate for rate in self.rates if missing[rate] == min(missing.values())]
        compared = [rate for rate in whole if lost[rate] == min(map(lost.__getitem__, whole))]
        shared = sorted(set.intersection(*(set(values[rate]) for rate in compared)))
        means = {rate: _mean(values[rate][place] for place in shared) for rate in compared}
        chosen = _best(means, sign)
        own = float(next(iter(self.found.values()))[OF_RECIPE])
        tried = [
            Tried(
                own if rate is None else rate,
                means[rate] if rate in means else _mean(values[rate].values()),
                len(shared if rate in means else values[rate]),
                lost[rate],
                missing[rate],
            )
            for rate in self.rates
        ]
        taken = [line for place in self.places if (line := self._taken(place, chosen)) is not None]
        by_rate = sorted(tried, key=lambda one: one.rate)
        return Choice(own if chosen is None else chosen, own, by_rate, taken, self.key)

    def _values(self, rate: float | None) -> dict[Network, float]:
        """Place -> the value at this rate, where it is finished and has one."""
        lines = {place: self.found.get(replace(place, learning_rate=rate), {}) for place in self.places}
        return {place: value for place, line in lines.items() if (value := value_of(line, self.key)) is not None}

    def _lost(self, rate: float | None) -> int:
        """How many networks at this rate have no value, and never will."""
        networks = [replace(place, learning_rate=rate) for place in self.places]
        gone = left_out(networks, self.diverged)
        there = [network for network in networks if network in self.found]
        without = [network for network in there if value_of(self.found[network], self.key) is None]
        return len(without) + sum(network in gone and network not in self.found for network in networks)

    def _taken(self, place: Network, chosen: float | None) -> Line | None:
        """The line at the chosen rate; the recipe's own ticket, if it diverged and the other was left out for it."""
        line, own = self.found.get(replace(place, learning_rate=chosen)), self.found.get(place)
        if line is None and place.control == TICKET and own is not None and Diverged.of_line(own) is not None:
            return own
        return line


def _best(means: Mapping[float | None, float], sign: int) -> float | None:
    """The first of the rates whose mean is the best but for rounding; the first of all if there are no means."""
    known = {rate: sign * mean for rate, mean in means.items() if not math.isnan(mean)}
    best = max(known.values(), default=math.nan)
    return next((rate for rate, mean in known.items() if math.isclose(mean, best, rel_tol=_TIE)), next(iter(means)))


def unfinished_notes(found: Mapping[Group, Choice]) -> list[str]:
    """A sentence for each control that was chosen for before all its networks had finished."""
    rounds: dict[str, list[int]] = {}
    for (control, round), choice in sorted(found.items(), key=lambda item: item[0][1]):
        if choice.unfinished:
            rounds.setdefault(control, []).append(round)
    return [
        f"Not all networks of {control} at round{'s' if len(at) > 1 else ''} {', '.join(map(str, at))} have finished: "
        "its learning rate there is chosen among the others for now."
        for control, at in rounds.items()
    ]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(value / len(values) for value in values) if values else math.nan  # no sum is infinite
