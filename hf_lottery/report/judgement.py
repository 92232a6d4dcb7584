"""The verdict as a section of the report: one row per density, with yes, no or undecided."""

from __future__ import annotations

from collections.abc import Callable

from hf_lottery.layout import LOTTERY_CONTROLS
from hf_lottery.report.section import Section
from hf_lottery.results import formatting
from hf_lottery.results.finding import LEVEL, Finding
from hf_lottery.results.headline import too_few
from hf_lottery.results.table import Cell
from hf_lottery.results.verdict import RoundVerdict, Verdict


def judgement(found: Verdict) -> list[Section]:
    """The table of answers, as a list of one section; one sentence where there are too few replicates for any answer.

    Empty while there is no round to judge.
    """
    if not found.rounds:
        return []
    when = "the early-stop step" if found.early_stop else "the end of training"
    heading = f"Verdict by density, at {when}"
    if sentence := too_few(found):
        return [Section(heading, [sentence])]
    headings = ["density", "matching dense?", *(f"better than {control}?" for control in found.controls())]
    headings += ["winning ticket?", "earlier than dense?", "speed-up"]
    margin = formatting.difference(found.tolerance, found.metric, signed=False)
    sentences = [
        f"Matching: test {found.metric} at {when} within {margin} of dense. A difference is the mean over paired "
        "replicates, signed so that + favours the ticket, with its own 95% interval and the number n of pairs. "
        f"Winning: matching, and better than both {' and '.join(LOTTERY_CONTROLS)}. Speed-up: dense early-stop step "
        "/ the ticket's.",
        "The answers are corrected for the number of densities (Holm's correction): all yes answers to one question "
        f"together are wrong in at most {100 * LEVEL:.1f}% of experiments, and so are all no answers. Two claims have "
        "as much again, and make the answers at their densities yes: the fixed sequence from dense to sparse, and the "
        "winning tickets. An interval that excludes a value can therefore be undecided.",
    ]
    if found.looks > 1:
        sentences.append(
            f"Replicates were added until a winning ticket was shown or ruled out: each of the {found.looks} looks "
            f"that were planned has 1/{found.looks} of these error rates."
        )
    if found.steps_resolution:
        sentences.append(
            f"Early-stop steps are multiples of {found.steps_resolution:,.0f} steps: a smaller mean difference is no "
            "difference."
        )
    body = [_judgement_row(found, judged) for judged in found.rounds]
    return [Section(heading, sentences, (headings, body))]


def _judgement_row(found: Verdict, judged: RoundVerdict) -> list[Cell]:
    def of_metric(finding: Finding) -> str:
        return formatting.with_interval(finding.difference, found.metric)

    def of_steps(finding: Finding) -> str:
        return formatting.steps_difference(finding.difference)

    better = [judged.better.get(control) for control in found.controls()]
    return [
        Cell(formatting.percent(judged.density)),
        _answer(judged.matching, of_metric),
        *(Cell(formatting.NOTHING) if finding is None else _answer(finding, of_metric) for finding in better),
        Cell(judged.winning),
        _answer(judged.earlier, of_steps),
        Cell(formatting.times(judged.speedup)),
    ]


def _answer(finding: Finding, show: Callable[[Finding], str]) -> Cell:
    count = finding.difference.n
    parts = [show(finding), f"n = {count}"] if count else []
    return Cell(finding.answer, "; ".join(filter(None, (", ".join(parts), finding.note))))
