"""Which learning rate a control, the dense network or a ticket is shown and judged at: the best by validation.

One is chosen for each control and round, over all replicates together. For the comparison at the early-stop step it is
the same one. Test values are never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
    """The finished networks of one control and round."""

    found: Mapping[Network, Line]
    rates: Sequence[float | None]  # the recipe's own is None, and comes first
    diverged: Sequence[Network]
    key: str

    def choice(self, sign: int) -> Choice:
        places = sorted({replace(network, learning_rate=None) for network in self.found})
        own = float(next(iter(self.found.values()))[OF_RECIPE])
        values: dict[float | None, dict[Network, float]] = {}
        lost, missing = {}, {}
        for rate in self.rates:
            networks = {place: replace(place, learning_rate=rate) for place in places}
            gone = left_out(networks.values(), self.diverged)
            there = {place: self.found[n] for place, n in networks.items() if n in self.found}
            every = {place: value_of(line, self.key) for place, line in there.items()}
            values[rate] = {place: value for place, value in every.items() if value is not None}
            lost[rate] = sum(value is None for value in every.values())
            lost[rate] += sum(n in gone for place, n in networks.items() if place not in there)
            missing[rate] = len(places) - lost[rate] - len(values[rate])
        whole = [rate for rate in self.rates if missing[rate] == min(missing.values())]
        fewest = [rate for rate in whole if lost[rate] == min(lost[rate] for rate in whole)]
        shared = set.intersection(*(set(values[rate]) for rate in fewest))
        means = {rate: _mean(values[rate][place] for place in sorted(shared)) for rate in fewest}
        best = max((sign * mean for mean in means.values()), default=math.nan)
        equal = [rate for rate, mean in means.items() if math.isclose(sign * mean, best, rel_tol=_TIE)] or fewest
        chosen = equal[0]
        tried = [
            Tried(
                own if rate is None else rate,
                means.get(rate, _mean(values[rate].values())),
                len(shared) if rate in means else len(values[rate]),
                lost[rate],
                missing[rate],
            )
            for rate in self.rates
        ]
        tried = sorted(tried, key=lambda one: one.rate)
        taken = [line for place in places if (line := self._taken(place, chosen)) is not None]
        return Choice(own if chosen is None else chosen, own, tried, taken, self.key)

    def _taken(self, place: Network, chosen: float | None) -> Line | None:
        """The line at the chosen rate; the recipe's own ticket, if it diverged and the other was left out for it."""
        line, own = self.found.get(replace(place, learning_rate=chosen)), self.found.get(place)
        if line is None and place.control == TICKET and own is not None and Diverged.of_line(own) is not None:
            return own
        return line


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
    return math.fsum(values) / len(values) if values else math.nan
