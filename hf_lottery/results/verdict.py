"""The verdict: at each density, is the ticket matching, better than its controls, earlier? And down to where?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_lottery.results.formatting import difference, percent
from hf_lottery.results.results import TICKET, Results
from hf_lottery.results.statistics import Estimate, paired_difference

TOLERANCE = 0.002  # 0.2 points: "matching" of Frankle et al. 2020 (arXiv 1912.05671)
MIN_REPLICATES = 3  # a t interval of two values is 12.7 standard errors wide on either side

# the controls that a winning ticket must beat: the same mask over other weights, the same weights under another mask
LOTTERY_CONTROLS = ("random_reinit", "random_mask")

YES, NO, TOO_FEW, NO_DATA = "yes", "no", "too few replicates to say", "not measured"


@dataclass(frozen=True)
class Finding:
    """One answer with what it rests on.

    Args:
        answer: yes, no, too few replicates to say, or not measured.
        difference: ticket − the other, over paired replicates, signed so that positive is in the ticket's favour.
        on_average: the answer that the mean alone would give.
    """

    answer: str
    difference: Estimate
    on_average: bool


@dataclass(frozen=True)
class RoundVerdict:
    """The findings at one density.

    Args:
        round: the ticket's round.
        density: kept / all weights, counted, mean over replicates.
        matching: within the tolerance of dense.
        better: control -> does the ticket beat it?
        earlier: is the early-stop step before the dense network's? Its difference is in steps.
        earlier_than: control -> the same against the control.
        speedup: dense early-stop step / the ticket's, each the mean over paired replicates; NaN when not measured.
    """

    round: int
    density: float
    matching: Finding
    better: dict[str, Finding]
    earlier: Finding
    earlier_than: dict[str, Finding]
    speedup: float

    @property
    def winning(self) -> str:
        """Is it a winning ticket: matching, and better than random re-initialisation and random mask (if run)?"""
        answers = [self.better[control].answer for control in LOTTERY_CONTROLS if control in self.better]
        if not answers:
            return NO_DATA
        answers.append(self.matching.answer)
        return NO if NO in answers else YES if set(answers) == {YES} else TOO_FEW


@dataclass(frozen=True)
class Verdict:
    """What an experiment showed.

    Args:
        metric: the task's metric.
        early_stop: judged at the early-stop step, not at the end of training.
        tolerance: in units of the metric (a fraction for accuracy).
        replicates: how many replicates have a finished dense network.
        rounds: the findings by round, from round 1.
    """

    metric: str
    greater_is_better: bool
    early_stop: bool
    tolerance: float
    replicates: int
    rounds: list[RoundVerdict]

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
        """The same, by means alone: what papers without intervals print."""
        matching = [found for found in self.rounds if found.matching.on_average]
        return min(matching, key=lambda found: found.density, default=None)


def verdict(results: Results, tolerance: float = TOLERANCE, early_stop: bool = False) -> Verdict:
    """Judge every round of an experiment, by the test metric at the end of training or at the early-stop step.

    All comparisons pair the replicates and use the 95% Student-t interval [l, h] of the mean difference d, signed so
    that positive favours the ticket, with ε the tolerance. Below 3 replicates nothing is decided. Otherwise

    * matching: yes when l > −ε, no when h < −ε;
    * better than a control: yes when l > 0; no when h < ε (any advantage is smaller than the tolerance);
    * earlier: yes when l > 0 steps, no when h < 0, or when every replicate's difference is 0;

    and else the interval holds both answers: too few replicates to say.

    Args:
        results: the finished units.
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
    sign = 1 if results.greater_is_better else -1
    key = f"early_stop_test_{results.metric}" if early_stop else f"test_{results.metric}"
    dense = results.values(key, TICKET, 0)
    if not results.greater_is_better and dense:
        tolerance *= sum(dense.values()) / len(dense)
    rounds = [_judge(results, round, key, sign, dense, tolerance) for round in results.rounds(TICKET) if round > 0]
    return Verdict(results.metric, results.greater_is_better, early_stop, tolerance, len(dense), rounds)


def _judge(results: Results, round: int, key: str, sign: int, dense: dict[int, float], tolerance: float):
    ticket = results.values(key, TICKET, round)
    steps = results.values("early_stop_step", TICKET, round)
    dense_steps = results.values("early_stop_step", TICKET, 0)
    better, earlier_than = {}, {}
    for control in results.controls():
        if other := results.values(key, control, round):
            better[control] = _finding(_signed(ticket, other, sign), above=0.0, below=tolerance)
        if other := results.values("early_stop_step", control, round):
            earlier_than[control] = _finding(_signed(steps, other, -1), above=0.0, below=0.0)
    both = steps.keys() & dense_steps.keys()
    own = sum(steps[replicate] for replicate in both)
    return RoundVerdict(
        round=round,
        density=results.density(TICKET, round),
        matching=_finding(_signed(ticket, dense, sign), above=-tolerance, below=-tolerance),
        better=better,
        earlier=_finding(_signed(steps, dense_steps, -1), above=0.0, below=0.0),
        earlier_than=earlier_than,
        speedup=sum(dense_steps[replicate] for replicate in both) / own if own else math.nan,
    )


def _signed(ticket: dict[int, float], other: dict[int, float], sign: int) -> Estimate:
    found = paired_difference(ticket, other)
    return found if sign > 0 else -found


def _finding(found: Estimate, above: float, below: float) -> Finding:
    """Yes when the interval lies above `above`, no when it lies below `below`."""
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


def verdict_controls(found: Verdict) -> list[str]:
    """The controls that the ticket was compared with at any density, in their order."""
    return list(dict.fromkeys(control for judged in found.rounds for control in judged.better))


def headline(found: Verdict) -> str:
    """The verdict in a sentence or two, the extreme matching density first."""
    if not found.rounds:
        return "Nothing to judge yet: no round after the dense network has finished."
    if found.replicates == 0:
        return "Nothing to compare with: no dense network (round 0) has finished."
    margin = difference(found.tolerance, found.metric, signed=False)
    count = f"{found.replicates} replicate{'s' if found.replicates != 1 else ''}"
    best = found.extreme
    if best is not None:
        start = (
            f"Matching down to {percent(best.density)} density (round {best.round}): test {found.metric} within "
            f"{margin} of dense, 95% interval over {best.matching.difference.n} replicates."
        )
        return f"{start} {_against_controls(best)} {_winning(found, best)}".strip()
    if found.replicates < MIN_REPLICATES:
        by_mean = found.extreme_on_average
        rest = (
            f"By the mean alone it matches dense within {margin} down to {percent(by_mean.density)} density."
            if by_mean
            else f"By the mean alone no density matches dense within {margin}."
        )
        return f"Too few replicates to say ({count}; {MIN_REPLICATES} are needed). {rest}"
    if all(finding.matching.answer == NO for finding in found.rounds):
        return f"No ticket: at no density is test {found.metric} within {margin} of dense ({count})."
    undecided = [percent(r.density) for r in found.rounds if r.matching.answer == TOO_FEW]
    where = f"the interval at {', '.join(undecided)} density holds both answers" if undecided else "nothing is paired"
    return f"No density is shown to match dense within {margin} ({count}); {where}."


def _against_controls(found: RoundVerdict) -> str:
    if not found.better:
        return "No control was run at this density, so it is not shown to be a winning ticket."
    groups = {YES: "It is better than", NO: "It is no better than", TOO_FEW: "Too few replicates to say against"}
    parts = []
    for answer, words in groups.items():
        names = [control for control, finding in found.better.items() if finding.answer == answer]
        if names:
            parts.append(f"{words} {', '.join(names)}.")
    return " ".join(parts)


def _winning(found: Verdict, best: RoundVerdict) -> str:
    """What the extreme matching density does not say: where else there is a winning ticket, or that there is none."""
    if best.winning == YES:
        return ""
    if found.winning is not None:
        at = percent(found.winning.density)
        return f"A winning ticket, which must also beat its controls, is shown down to {at}."
    matching = [judged for judged in found.rounds if judged.matching.answer == YES and judged.winning != NO_DATA]
    if not matching:
        return ""
    if all(judged.winning == NO for judged in matching):
        return "No winning ticket: wherever it matches, a random re-initialisation or a random mask does as well."
    return "A winning ticket, which must also beat its controls, is not shown."
