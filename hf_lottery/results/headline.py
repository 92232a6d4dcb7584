"""The verdict of an experiment in a sentence or two."""

from __future__ import annotations

from hf_lottery.results.formatting import difference, percent
from hf_lottery.results.verdict import DIVERGED, MIN_REPLICATES, NO, NO_DATA, TOO_FEW, YES, RoundVerdict, Verdict


def headline(found: Verdict) -> str:
    """The verdict in a sentence or two, the extreme matching density first, and what diverged last."""
    return " ".join(filter(None, (_claim(found), found.diverged)))


def _claim(found: Verdict) -> str:
    if found.diverged and not any(judged.matching.difference.n for judged in found.rounds):
        return "No verdict: no replicate has both a dense network and a ticket that did not diverge."
    if not found.rounds:
        return "Nothing to judge yet: no round after the dense network has finished."
    if found.replicates == 0:
        return "Nothing to compare with: no dense network (round 0) has finished."
    if found.extreme is not None:
        return " ".join(filter(None, _matching(found, found.extreme)))
    if found.replicates < MIN_REPLICATES:
        return _too_few(found)
    return _not_matching(found)


def _matching(found: Verdict, best: RoundVerdict) -> list[str]:
    return [
        f"Matching down to {percent(best.density)} density (round {best.round}): test {found.metric} within "
        f"{_margin(found)} of dense, 95% interval over {best.matching.difference.n} replicates.",
        _against_controls(best),
        _winning(found, best),
    ]


def _too_few(found: Verdict) -> str:
    best = found.extreme_on_average
    if best is None:
        rest = f"By the mean alone no density matches dense within {_margin(found)}."
    else:
        rest = f"By the mean alone it matches dense within {_margin(found)} down to {percent(best.density)} density."
    return f"Too few replicates to say ({_count(found)}; {MIN_REPLICATES} are needed). {rest}"


def _not_matching(found: Verdict) -> str:
    if all(judged.matching.answer == NO for judged in found.rounds):
        return f"No ticket: at no density is test {found.metric} within {_margin(found)} of dense ({_count(found)})."
    undecided, diverged = (
        ", ".join(percent(judged.density) for judged in found.rounds if judged.matching.answer == answer)
        for answer in (TOO_FEW, DIVERGED)
    )
    where = f"the interval at {undecided} density holds both answers" if undecided else ""
    if diverged:
        where += f"{'; ' if where else ''}at {diverged} density it is not said, because a ticket diverged"
    where = where or "nothing is paired"
    return f"No density is shown to match dense within {_margin(found)} ({_count(found)}); {where}."


def _margin(found: Verdict) -> str:
    return difference(found.tolerance, found.metric, signed=False)


def _count(found: Verdict) -> str:
    return f"{found.replicates} replicate{'s' if found.replicates != 1 else ''}"


def _against_controls(found: RoundVerdict) -> str:
    if not found.better:
        return "No control was run at this density, so it is not shown to be a winning ticket."
    groups = {
        YES: "It is better than",
        NO: "It is no better than",
        TOO_FEW: "Too few replicates to say against",
        DIVERGED: "A network diverged, so nothing is said against",
    }
    parts = []
    for answer, words in groups.items():
        names = [control for control, finding in found.better.items() if finding.answer == answer]
        if names:
            parts.append(f"{words} {', '.join(names)}.")
    return " ".join(parts)


def _winning(found: Verdict, best: RoundVerdict) -> str:
    """For a matching ticket of lowest density that is not a winning one: where there is one, or that there is none."""
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
