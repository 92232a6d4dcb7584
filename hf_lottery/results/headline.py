"""The verdict of an experiment in a few sentences."""

from __future__ import annotations

from collections.abc import Iterable

from hf_lottery.layout import LOTTERY_CONTROLS
from hf_lottery.results.finding import MIN_REPLICATES, NO, TOO_FEW, UNDECIDED, YES
from hf_lottery.results.formatting import difference, percent
from hf_lottery.results.verdict import RoundVerdict, Verdict


def headline(found: Verdict) -> str:
    """The verdict in a few sentences, the extreme matching density first, and what diverged last."""
    return " ".join(filter(None, (_claim(found), found.diverged)))


def _claim(found: Verdict) -> str:
    if found.diverged and not any(judged.matching.difference.n for judged in found.rounds):
        return "No verdict: no replicate has both a dense network and a ticket that did not diverge."
    if not found.rounds:
        return "Nothing to judge yet: no round after the dense network has finished."
    if unjudged := too_few(found):
        return f"{unjudged} {_by_the_mean(found)}".strip()
    if all(judged.matching.answer == NO for judged in found.rounds):
        return f"No ticket: at no density is test {found.metric} within {_margin(found)} of dense ({_count(found)})."
    best = found.extreme
    if best is None:
        where = "where the sequence from dense to sparse begins"
        start = f"It is not shown to match dense within {_margin(found)} ({_count(found)})"
        parts = [f"{start}: at {percent(_end(found).density)}, {where}, {_answer_at_end(found)}."]
    else:
        end = _end(found)
        parts = [_matching(found, best), f"At {percent(end.density)} {_answer_at_end(found)}." if end else ""]
    parts += [_one_by_one(found), _against_controls(best) if best else "", _winning(found)]
    return " ".join(filter(None, parts))


def _matching(found: Verdict, best: RoundVerdict) -> str:
    alone = len(found.sequence) == 1
    where = "" if alone else ", there and at each greater density that was judged"
    return (
        f"Matching down to {percent(best.density)} density (round {best.round}): test {found.metric} within "
        f"{_margin(found)} of dense{where}, over {best.matching.difference.n} replicates."
    )


def _end(found: Verdict) -> RoundVerdict | None:
    """The first density that is not shown to match, after which no lower one is called matched; None if all match."""
    judged = [one for one in found.rounds if one.matching.comparison.count]
    return judged[len(found.sequence)] if len(judged) > len(found.sequence) else None


def _answer_at_end(found: Verdict) -> str:
    """What is known at that density."""
    matching = _end(found).matching
    if matching.answer == NO:
        return "it does not match"
    if matching.answer == TOO_FEW:
        return f"it is not known, which takes {MIN_REPLICATES} replicates"
    if lost := matching.comparison.lost:
        return f"it is undecided: {lost} of {matching.comparison.count} tickets diverged"
    needed = matching.replicates_to_decide
    return "it is undecided" + (f": about {needed} replicates would probably decide" if needed else "")


def _one_by_one(found: Verdict) -> str:
    """The densities beyond the sequence that match when every density is judged by itself."""
    others = [one for one in found.rounds if one.matching.answer == YES and one.round not in found.sequence]
    if not others:
        return ""
    also = "also " if found.sequence else ""
    return f"Judged one by one, with Holm's correction, it {also}matches at {_densities(others)}."


def _against_controls(best: RoundVerdict) -> str:
    if not best.better:
        return "No control was run at this density, so it is not shown to be a winning ticket."
    if best.winning == YES:
        return f"It is a winning ticket: better than {' and '.join(LOTTERY_CONTROLS)}."
    words = {
        YES: "It is better than",
        NO: "It is not better than",
        UNDECIDED: "Undecided against",
        TOO_FEW: f"{MIN_REPLICATES} replicates are needed against",
    }
    parts = []
    for answer, start in words.items():
        names = [control for control, finding in best.better.items() if finding.answer == answer]
        if names:
            parts.append(f"{start} {', '.join(names)}.")
    missing = [control for control in LOTTERY_CONTROLS if control not in best.better]
    if missing and best.winning != NO:
        were = "was" if len(missing) == 1 else "were"
        names = " and ".join(missing)
        parts.append(f"{names} {were} not run at this density, so it is not shown to be a winning ticket.")
    return " ".join(parts)


def _winning(found: Verdict) -> str:
    """Where else a winning ticket is shown, or that none is."""
    best = found.extreme
    winning = [one for one in found.rounds if one.winning == YES and one is not best]
    if winning:
        also = " also" if best is not None and best.winning == YES else ""
        return (
            f"A winning ticket, which matches and is better than {' and '.join(LOTTERY_CONTROLS)}, is{also} shown "
            f"at {_densities(winning)}."
        )
    tried = found.tried()
    if not tried or (best is not None and best.winning == YES):
        return ""
    if all(one.winning == NO for one in tried):
        return "No winning ticket: wherever both controls were run, it does not match or is not better than one."
    alone = [one for one in tried if one.matching.answer == YES and _beats_both(one)]
    if alone:
        return (
            f"A winning ticket is not shown: at {_densities(alone)} each of the three answers is yes, but that all "
            "three hold together is undecided, corrected for the number of densities."
        )
    return "A winning ticket is not shown."


def _beats_both(judged: RoundVerdict) -> bool:
    return all(judged.better[control].answer == YES for control in LOTTERY_CONTROLS)


def too_few(found: Verdict) -> str:
    """Why no density has an answer: a sentence, or nothing if one may have."""
    counts = [judged.matching.comparison.count for judged in found.rounds]
    if found.replicates == 0:
        when = " at the early-stop step" if found.early_stop else ""
        return f"Nothing to compare with: no finished dense network (round 0) has a test {found.metric}{when}."
    if max(counts, default=0) >= MIN_REPLICATES:
        return ""
    few = found.replicates < MIN_REPLICATES
    have = _count(found) if few else f"{max(counts)} of {_count(found)} have a ticket beside the dense network"
    return f"Undecided: {have}, and a verdict needs {MIN_REPLICATES} replicates."


def _by_the_mean(found: Verdict) -> str:
    if not any(judged.matching.difference.n for judged in found.rounds):
        return ""
    best = found.extreme_on_average
    if best is None:
        return f"By the mean alone no density matches dense within {_margin(found)}."
    return f"By the mean alone it matches dense within {_margin(found)} down to {percent(best.density)} density."


def _densities(rounds: Iterable[RoundVerdict]) -> str:
    return f"{', '.join(percent(one.density) for one in rounds)} density"


def _margin(found: Verdict) -> str:
    return difference(found.tolerance, found.metric, signed=False)


def _count(found: Verdict) -> str:
    return f"{found.replicates} replicate{'s' if found.replicates != 1 else ''}"
