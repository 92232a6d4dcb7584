"""The verdict: at each density, does the ticket match the dense network, beat its controls, learn earlier?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hf_lottery.layout import TICKET
from hf_lottery.results.diverged import summary
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results
from hf_lottery.results.statistics import Estimate, paired_difference

TOLERANCE = 0.002  # 0.2 points: "matching" of Frankle et al. 2020 (arXiv 1912.05671)
MIN_REPLICATES = 3  # a t interval of two values is 12.7 standard errors wide on either side

# the controls that a winning ticket must beat: the same mask over other weights, the same weights under another mask
LOTTERY_CONTROLS = ("random_reinit", "random_mask")

YES, NO, TOO_FEW, NO_DATA = "yes", "no", "too few replicates to say", "not measured"
DIVERGED = "not said: a network diverged"


@dataclass(frozen=True)
class Finding:
    """One answer, and the difference that it is based on.

    Args:
        answer: yes, no, too few replicates to say, not measured, or not said because a network diverged.
        difference: ticket − the other, over paired replicates, signed so that positive is in the ticket's favour.
        on_average: the answer that the mean alone would give.
    """

    answer: str
    difference: Estimate
    on_average: bool


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
    """

    round: int
    density: float
    matching: Finding
    better: dict[str, Finding]
    earlier: Finding
    speedup: float

    @property
    def winning(self) -> str:
        """Is it a winning ticket: matching, and better than random re-initialisation and random mask (if run)?"""
        answers = [self.better[control].answer for control in LOTTERY_CONTROLS if control in self.better]
        if not answers:
            return NO_DATA
        answers.append(self.matching.answer)
        if NO in answers or set(answers) == {YES}:
            return NO if NO in answers else YES
        return DIVERGED if DIVERGED in answers else TOO_FEW


@dataclass(frozen=True)
class Verdict:
    """What an experiment showed.

    Args:
        metric: the metric that the networks are compared by.
        early_stop: judged at the early-stop step, not at the end of training.
        tolerance: in units of the metric (a fraction for accuracy).
        replicates: how many replicates have a finished dense network that did not diverge.
        rounds: the findings by round, from round 1.
        diverged: how many of the replicates diverged, and which networks where; to be said beside every claim. Empty
            if none did.
    """

    metric: Metric
    early_stop: bool
    tolerance: float
    replicates: int
    rounds: list[RoundVerdict]
    diverged: str = ""

    @property
    def extreme(self) -> RoundVerdict | None:
        """The matching round of the lowest density, or None."""
        matching = [found for found in self.rounds if found.matching.answer == YES]
        return min(matching, key=lambda found: found.density, default=None)

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

    def controls(self) -> list[str]:
        """The controls that the ticket was compared with at any density, in their order."""
        return list(dict.fromkeys(control for found in self.rounds for control in found.better))


def verdict(results: Results, tolerance: float = TOLERANCE, early_stop: bool = False) -> Verdict:
    """Judge every round of an experiment, by the test metric at the end of training or at the early-stop step.

    All comparisons pair the replicates and use the 95% Student-t interval [l, h] of the mean difference d, signed so
    that positive favours the ticket, with ε the tolerance. Below 3 replicates nothing is decided. Otherwise

    * matching: yes when l > −ε, no when h < −ε;
    * better than a control: yes when l > 0; no when h < ε (any advantage is smaller than the tolerance);
    * earlier: yes when l > 0 steps, no when h < 0, or when every replicate's difference is 0.

    In all other cases the interval allows both answers: too few replicates to say.

    Networks that diverged have no value, so that n falls. Leaving out diverged tickets flatters the ticket: from the
    round on at which the ticket of a replicate diverged, no answer is yes, and nothing is matched by the mean. Leaving
    out a diverged control flatters the control: then "better" is not answered no. A replicate whose dense network
    diverged has nothing to be compared with, and only makes n smaller.

    Args:
        results: the finished networks.
        tolerance: ε. For metrics of which greater is better, in the metric's units (0.002 = 0.2 points of accuracy);
            for perplexity and loss, as a share of the dense network's mean value.
        early_stop: judge by the metric at every network's own early-stop step, as Frankle & Carbin 2019 do in most
            figures, instead of the end, as Frankle et al. 2020 do.

    Raises:
        ValueError: the tolerance is negative.

    Source: matching within 0.2 points, Frankle et al. 2020 (arXiv 1912.05671); early-stop step, Frankle & Carbin 2019.
    """
    if not tolerance >= 0:
        raise ValueError(f"the tolerance is {tolerance}; it must be 0 or more, such as 0.002 for 0.2 points")
    key = f"early_stop_test_{results.metric}" if early_stop else f"test_{results.metric}"
    dense = results.values(key, TICKET, 0)
    if not results.metric.greater_is_better and dense:
        tolerance *= sum(dense.values()) / len(dense)
    rounds = [_judge(results, round, key, tolerance) for round in results.rounds(TICKET) if round > 0]
    return Verdict(results.metric, early_stop, tolerance, len(dense), rounds, summary(results.lines))


def _judge(results: Results, round: int, key: str, tolerance: float) -> RoundVerdict:
    greater_is_better = results.metric.greater_is_better
    ticket, dense = results.values(key, TICKET, round), results.values(key, TICKET, 0)
    others = {control: results.values(key, control, round) for control in results.controls()}
    gone = {control: bool(results.diverged_replicates(control, [round])) for control in others}
    steps, dense_steps = (results.values("early_stop_step", TICKET, number) for number in (round, 0))
    matching = _finding(_gain(ticket, dense, greater_is_better), above=-tolerance, below=-tolerance)
    better = {
        control: _finding(_gain(ticket, other, greater_is_better), above=0.0, below=tolerance)
        for control, other in others.items()
        if other or gone[control]
    }
    earlier = _finding(_gain(steps, dense_steps, greater_is_better=False), above=0.0, below=0.0)
    if results.diverged_replicates(TICKET, range(1, round + 1)):
        matching, earlier = _not_yes(matching), _not_yes(earlier)
        better = {control: _not_yes(finding) for control, finding in better.items()}
    return RoundVerdict(
        round=round,
        density=results.density(TICKET, round),
        matching=matching,
        better={control: _not_no(finding) if gone[control] else finding for control, finding in better.items()},
        earlier=earlier,
        speedup=_speedup(steps, dense_steps),
    )


def _not_yes(finding: Finding) -> Finding:
    """A finding from which a diverged ticket is left out: it cannot speak for the ticket."""
    answer = DIVERGED if finding.answer in (YES, NO_DATA) else finding.answer
    return Finding(answer, finding.difference, on_average=False)


def _not_no(finding: Finding) -> Finding:
    """A finding from which a diverged control is left out: it cannot speak for the control."""
    return replace(finding, answer=DIVERGED) if finding.answer in (NO, NO_DATA) else finding


def _gain(ticket: dict[int, float], other: dict[int, float], greater_is_better: bool) -> Estimate:
    """Ticket − other over paired replicates, signed so that positive is in the ticket's favour."""
    found = paired_difference(ticket, other)
    return found if greater_is_better else -found


def _speedup(steps: dict[int, float], dense_steps: dict[int, float]) -> float:
    """Mean early-stop step of the dense network / the ticket's, over the replicates that have both."""
    both = steps.keys() & dense_steps.keys()
    own = sum(steps[replicate] for replicate in both)
    return sum(dense_steps[replicate] for replicate in both) / own if own else math.nan


def _finding(found: Estimate, above: float, below: float) -> Finding:
    """Yes when the interval is above `above`, no when it is below `below`."""
    on_average = found.n > 0 and found.mean > above
    if found.n == 0:
        return Finding(NO_DATA, found, False)
    if found.n < MIN_REPLICATES:
        return Finding(TOO_FEW, found, on_average)
    if found.low > above:
        return Finding(YES, found, on_average)
    if found.high < below or found.high == found.low == below:
        return Finding(NO, found, on_average)
    return Finding(TOO_FEW, found, on_average)
