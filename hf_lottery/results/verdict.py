"""The verdict: at each density, does the ticket match the dense network, beat its controls, learn earlier?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hf_lottery.layout import LOTTERY_CONTROLS, TICKET, Network
from hf_lottery.results.diverged import Diverged, named, summary
from hf_lottery.results.finding import (
    LEVEL,
    MIN_REPLICATES,
    NO,
    NO_DATA,
    NO_DIFFERENCE,
    TOO_FEW,
    UNDECIDED,
    YES,
    Comparison,
    Finding,
    findings,
)
from hf_lottery.results.metric import Metric
from hf_lottery.results.multiplicity import fixed_sequence, holm
from hf_lottery.results.results import Results
from hf_lottery.results.statistics import paired_difference
from hf_lottery.results.values import value_of

__all__ = ["MIN_REPLICATES", "NO", "NO_DATA", "NO_DIFFERENCE", "TOO_FEW", "UNDECIDED", "YES", "verdict"]

TOLERANCE = 0.002  # 0.2 points: "matching" of Frankle et al. 2020 (arXiv 1912.05671)

# of the error rate of no for LOTTERY_CONTROLS: "not better" than either ends a winning ticket, as "not matching" does,
# and the three together have 5%
OF_NO = 0.75


@dataclass(frozen=True)
class RoundVerdict:
    """The findings at one round of the ticket.

    Args:
        round: the ticket's round.
        density: kept / all weights, counted, mean over replicates.
        matching: within the tolerance of dense.
        better: control -> does the ticket beat it?
        earlier: is the early-stop step before the dense network's? Its difference is in steps.
        speedup: dense early-stop step / the ticket's, each the mean over paired replicates; NaN when not measured.
        winning: is it a winning ticket: matching, and better than random re-initialisation and a random mask? If one
            of these was not run, it says which.
    """

    round: int
    density: float
    matching: Finding
    better: dict[str, Finding]
    earlier: Finding
    speedup: float
    winning: str


@dataclass(frozen=True)
class Verdict:
    """What an experiment showed.

    Args:
        metric: the metric that the networks are compared by.
        early_stop: judged at the early-stop step, not at the end of training.
        tolerance: in units of the metric (a fraction for accuracy).
        replicates: how many replicates have a finished dense network with a finite value.
        rounds: the findings by round, from round 1.
        sequence: the rounds that match one after the other, from the densest on; the last of them is `extreme`.
        steps_resolution: the steps between two evaluations, as far as the early-stop steps show it; 0 if unknown.
        looks: how often the results are judged with the aim to stop; 1 if the number of replicates was fixed before.
        diverged: how many of the replicates diverged, and which networks where; to be said beside every claim. Empty
            if none did.
    """

    metric: Metric
    early_stop: bool
    tolerance: float
    replicates: int
    rounds: list[RoundVerdict]
    sequence: list[int]
    steps_resolution: float = 0.0
    looks: int = 1
    diverged: str = ""

    @property
    def extreme(self) -> RoundVerdict | None:
        """The round of lowest density down to which the ticket matches at every density, or None."""
        return next((found for found in self.rounds if self.sequence[-1:] == [found.round]), None)

    @property
    def winning(self) -> RoundVerdict | None:
        """The winning ticket of the lowest density, or None."""
        winning = [found for found in self.rounds if found.winning == YES]
        return min(winning, key=lambda found: found.density, default=None)

    @property
    def extreme_on_average(self) -> RoundVerdict | None:
        """The matching round of the lowest density by the means alone, as papers without intervals print it."""
        matching = [found for found in self.rounds if found.matching.on_average]
        return min(matching, key=lambda found: found.density, default=None)

    @property
    def decided(self) -> bool:
        """Whether a winning ticket is shown at some density, or ruled out at each that has both controls.

        Where a ticket diverged none can be shown, however many replicates there are.
        """
        out = (found.winning == NO or found.matching.comparison.lost for found in self.tried())
        return self.winning is not None or all(out)

    def tried(self) -> list[RoundVerdict]:
        """The rounds at which both controls of a winning ticket were run."""
        return [found for found in self.rounds if all(control in found.better for control in LOTTERY_CONTROLS)]

    def controls(self) -> list[str]:
        """The controls that the ticket was compared with at any density, in their order."""
        return list(dict.fromkeys(control for found in self.rounds for control in found.better))


def verdict(results: Results, tolerance: float = TOLERANCE, early_stop: bool = False) -> Verdict:
    """Judge every round of an experiment, by the test metric at the end of training or at the early-stop step.

    All comparisons pair the replicates. A one-sided Student t test of the mean difference d, signed so that positive
    favours the ticket, gives the p values; ε is the tolerance. Below 3 replicates nothing is decided. The questions:

    * matching: yes when d > −ε is shown, no when d < −ε is;
    * better than a control: yes when d > 0, no when d < ε (any advantage is smaller than the tolerance);
    * earlier: yes when d > 0 steps, no when d < 0; no difference when the mean is below the resolution.

    **Many rounds.** Each question is asked at every round, and one lucky round must not make a claim. Every answer is
    therefore corrected over the rounds (Holm), so that all yes answers to one question together are wrong in at most
    2.5% of experiments, and all no answers in at most 2.5%. "Matching down to" is a fixed sequence from dense to
    sparse: each round is tested at 2.5%, and the first that is not shown to match ends it; its rounds are answered yes
    too. As matching is asked in two ways, the answers one by one have half of the error rate. A winning ticket is
    matching and better than both controls, at one round; over all rounds that have both controls, Holm corrects the
    greatest of the three p values, at 2.5% of its own. At a winning ticket's round the three answers are yes, so that
    the yes answers of the table, which are made in two or three ways, have the sum: 5% for better than one of the two
    controls, 6.25% for matching. "No winning ticket" is any of three no answers: 1.25% for matching and 1.875% for
    each control, 5% together.

    **Replicates until it is decided** (`experiment.replicates: auto`). The results are judged after 3, 5, 8, 12, …
    replicates; each of these looks has an equal share of every error rate (Bonferroni), so that together they keep it.

    **Networks that diverged**, and those whose metric is NaN or infinite, have the worst outcome. A replicate whose
    ticket diverged at a round or before it cannot be matching, better or earlier there, so that no answer is yes; if a
    control diverged, "better" is not answered no. A replicate whose dense network diverged has nothing to be compared
    with, and makes n smaller.

    **Resolution.** A deviation is never taken as smaller than the step of the metric's grid (1/500 for 500 test
    examples), because equal differences on a grid do not show that there is no variation.

    Args:
        results: the finished networks.
        tolerance: ε. For metrics of which greater is better, in the metric's units (0.002 = 0.2 points of accuracy);
            for perplexity and loss, as a share of the dense network's mean value.
        early_stop: judge by the metric at every network's own early-stop step, as Frankle & Carbin 2019 do in most
            figures, instead of the end, as Frankle et al. 2020 do.

    Raises:
        ValueError: the tolerance is negative.

    Source: matching within 0.2 points, Frankle et al. 2020 (arXiv 1912.05671); early-stop step, Frankle & Carbin 2019.
        The error rates are measured by `benchmarks/verdict_errors.py`.
    """
    if not tolerance >= 0:
        raise ValueError(f"the tolerance is {tolerance}; it must be 0 or more, such as 0.002 for 0.2 points")
    key = f"early_stop_test_{results.metric}" if early_stop else f"test_{results.metric}"
    dense = results.values(key, TICKET, 0)
    if not results.metric.greater_is_better and dense:
        tolerance *= abs(sum(dense.values()) / len(dense))
    resolutions = (results.resolution(key), results.resolution("early_stop_step"))
    judge = _Judge(results, key, tolerance, LEVEL / results.looks, resolutions)
    rounds = [number for number in results.rounds(TICKET) if number > 0]
    judged, sequence = judge.judge(rounds)
    said = " ".join(filter(None, (summary(results.lines), _not_finite(results, key))))
    return Verdict(
        results.metric, early_stop, tolerance, len(dense), judged, sequence, resolutions[1], results.looks, said
    )


@dataclass(frozen=True)
class _Judge:
    results: Results
    key: str
    tolerance: float
    level: float
    resolutions: tuple[float, float]  # of the metric, and of the early-stop step

    def judge(self, rounds: list[int]) -> tuple[list[RoundVerdict], list[int]]:
        """The findings by round, and the rounds of the fixed sequence."""
        margin = self.tolerance
        to_dense = {number: self._compare(self.key, number, TICKET, 0, -margin, -margin) for number in rounds}
        in_order = [number for number in rounds if to_dense[number].count]
        sequence = fixed_sequence(in_order, {n: to_dense[n].p_yes for n in in_order}, self.level)
        to_controls = {
            control: {
                number: self._compare(self.key, number, control, number, 0.0, margin)
                for number in rounds
                if self.results.select(control, number)
            }
            for control in self.results.controls()
        }
        both = [n for n in rounds if all(n in to_controls.get(control, {}) for control in LOTTERY_CONTROLS)]
        p_values = {n: max(to_dense[n].p_yes, *(to_controls[c][n].p_yes for c in LOTTERY_CONTROLS)) for n in both}
        wins = holm(p_values, self.level)
        matching = findings(to_dense, self.level / 2, wins.union(sequence))
        for number in in_order[len(sequence) : len(sequence) + 1]:  # the sequence tests it at the whole level
            matching[number] = replace(matching[number], level=self.level)
        better = {
            control: findings(compared, self.level, wins, OF_NO * self.level)
            if control in LOTTERY_CONTROLS
            else findings(compared, self.level)
            for control, compared in to_controls.items()
        }
        earlier = findings({n: self._compare("early_stop_step", n, TICKET, 0, 0.0, 0.0) for n in rounds}, self.level)
        judged = []
        for number in rounds:
            here = {control: found[number] for control, found in better.items() if number in found}
            judged.append(
                RoundVerdict(
                    round=number,
                    density=self.results.density(TICKET, number),
                    matching=matching[number],
                    better=here,
                    earlier=earlier[number],
                    speedup=self._speedup(number),
                    winning=_winning(matching[number], here, number in wins),
                )
            )
        return judged, sequence

    def _compare(self, key: str, number: int, control: str, round: int, above: float, below: float) -> Comparison:
        """The ticket of round `number` against the networks of `control` at `round` (TICKET at 0: the dense ones)."""
        results, of_steps = self.results, key == "early_stop_step"
        greater_is_better = results.metric.greater_is_better and not of_steps
        resolution = self.resolutions[of_steps]
        theirs = results.values(key, control, round)
        found = paired_difference(results.values(key, TICKET, number), theirs, resolution=resolution)
        dense = results.values(key, TICKET, 0).keys()
        lost = results.without_value(key, TICKET, number) | results.diverged_replicates(TICKET, range(1, number + 1))
        gone = set() if round == 0 else results.without_value(key, control, round) - lost
        return Comparison(
            found if greater_is_better else -found,
            above,
            below,
            lost=len(lost & dense),
            rival_lost=len(gone),
            rival_partly=len(gone & theirs.keys() & results.values(key, TICKET, number).keys()),
            resolution=resolution if of_steps else 0.0,
        )

    def _speedup(self, number: int) -> float:
        """Mean early-stop step of the dense network / the ticket's, over the replicates that have both."""
        steps, dense = (self.results.values("early_stop_step", TICKET, round) for round in (number, 0))
        both = steps.keys() & dense.keys()
        own = sum(steps[replicate] for replicate in both)
        return sum(dense[replicate] for replicate in both) / own if own else math.nan


def _winning(matching: Finding, better: dict[str, Finding], wins: bool) -> str:
    """The answer to "is it a winning ticket?"; for a control that was not run, its name."""
    not_run = [control for control in LOTTERY_CONTROLS if control not in better]
    answers = [matching.answer, *(better[control].answer for control in LOTTERY_CONTROLS if control in better)]
    if NO in answers:
        return NO
    if not_run:
        return f"{' and '.join(not_run)} not run"
    if wins:
        return YES
    return next((answer for answer in (NO_DATA, TOO_FEW) if answer in answers), UNDECIDED)


def _not_finite(results: Results, key: str) -> str:
    """Which finished networks have a NaN or infinite metric, though their training did not diverge; empty if none."""
    known = any(value_of(line, key) is not None for line in results.lines)
    lost = [line for line in results.lines if value_of(line, key) is None and Diverged.of_line(line) is None]
    if not known or not lost:
        return ""
    count = "1 network has" if len(lost) == 1 else f"{len(lost)} networks have"
    which = named(Network.of_line(line) for line in lost)
    return f"{count} no finite {key.replace('_', ' ')}, which counts as the worst outcome: {which}."
