"""One answer of the verdict, and how the answers of all rounds to one question are made from their differences."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hf_lottery.results.multiplicity import holm
from hf_lottery.results.statistics import CONFIDENCE, Estimate, replicates_to_decide

MIN_REPLICATES = 3  # a t interval of two values is 12.7 standard errors wide on either side
LEVEL = (1 - CONFIDENCE) / 2  # the family-wise error of each claim and direction: that of one side of an interval

YES, NO, UNDECIDED = "yes", "no", "undecided"
TOO_FEW, NO_DATA, NO_DIFFERENCE = f"needs {MIN_REPLICATES} replicates", "not measured", "no difference"


@dataclass(frozen=True)
class Comparison:
    """A difference at one round, before any correction for the other rounds.

    Args:
        difference: ticket − the other, over the replicates in which both have a value, signed so that positive is in
            the ticket's favour.
        above: the answer is yes if the true mean is above it.
        below: the answer is no if the true mean is below it.
        lost: replicates of which the ticket has no value, because it or a round before diverged.
        rival_lost: replicates of which the other has none, or one sample of it has none.
        rival_partly: of these, the ones of which another sample has a value, so that they are in the difference.
        resolution: a mean difference that is smaller says nothing, where it is above 0.
    """

    difference: Estimate
    above: float
    below: float
    lost: int = 0
    rival_lost: int = 0
    rival_partly: int = 0
    resolution: float = 0.0

    @property
    def count(self) -> int:
        """How many replicates there are, with those that diverged."""
        return self.difference.n + self.lost + self.rival_lost - self.rival_partly

    @property
    def p_yes(self) -> float:
        """One-sided p value for yes. A ticket that diverged is the worst outcome, so that its mean is not above."""
        return 1.0 if self.lost or self.difference.n < MIN_REPLICATES else self.difference.p_above(self.above)

    @property
    def p_no(self) -> float:
        """One-sided p value for no. A rival that diverged is the worst outcome for the rival."""
        few = self.difference.n < MIN_REPLICATES
        return 1.0 if self.rival_lost or few else self.difference.p_below(self.below)


@dataclass(frozen=True)
class Finding:
    """One answer, and the difference that it is based on.

    Args:
        answer: yes, no, undecided, needs 3 replicates, not measured, or (for steps) no difference.
        comparison: what was compared.
        level: the error rate at which the first of the rounds was tested, after the correction.
    """

    answer: str
    comparison: Comparison
    level: float = LEVEL

    @property
    def difference(self) -> Estimate:
        """ticket − the other, over paired replicates that both have a value."""
        return self.comparison.difference

    @property
    def on_average(self) -> bool:
        """The answer that the mean alone would give."""
        return self.difference.n > 0 and not self.comparison.lost and self.difference.mean > self.comparison.above

    @property
    def replicates_to_decide(self) -> int | None:
        """How many replicates would probably (80%) decide, if mean and deviation are what was measured.

        None if it is decided, if a network diverged, or if more than 1,000 are needed.
        """
        found = self.comparison
        if self.answer != UNDECIDED or found.lost or found.rival_lost or self.difference.n < MIN_REPLICATES:
            return None
        deviation = self.difference.error * math.sqrt(self.difference.n)
        distances = (self.difference.mean - found.above, found.below - self.difference.mean)
        counts = [replicates_to_decide(distance, deviation, self.level) for distance in distances]
        return min((max(count, self.difference.n + 1) for count in counts if count), default=None)

    @property
    def note(self) -> str:
        """What must be said beside the interval: how many diverged, and how many replicates would decide."""
        found, parts = self.comparison, []
        for count, whose in ((found.lost, "the ticket"), (found.rival_lost, "the other")):
            if count:
                parts.append(f"{whose} diverged in {count} of {found.count}")
        if needed := self.replicates_to_decide:
            parts.append(f"about {needed} would probably decide")
        return ", ".join(parts)


def findings(
    comparisons: Mapping[int, Comparison],
    level: float = LEVEL,
    already: Collection[int] = (),
    level_of_no: float | None = None,
) -> dict[int, Finding]:
    """Answer one question at every round, each direction with a family-wise error of `level` over all of them.

    Args:
        comparisons: round -> what was compared.
        level: of yes over all rounds, and of no over all rounds; by Holm's correction.
        already: rounds whose answer is known to be yes.
        level_of_no: of no over all rounds, where it is another.
    """
    measured = {round: found for round, found in comparisons.items() if found.count}
    yes = holm({round: found.p_yes for round, found in measured.items()}, level) | set(already)
    no = holm({round: found.p_no for round, found in measured.items()}, level if level_of_no is None else level_of_no)
    first = level / max(len(measured), 1)
    return {
        round: Finding(_answer(found, round in yes, round in no), found, first) for round, found in comparisons.items()
    }


def _answer(found: Comparison, yes: bool, no: bool) -> str:
    if not found.count:
        return NO_DATA
    if found.count < MIN_REPLICATES:
        return TOO_FEW
    if found.difference.n and not found.lost and abs(found.difference.mean) < found.resolution:
        return NO_DIFFERENCE
    if yes:
        return YES
    return NO if no else UNDECIDED
