"""The verdict as a section of the report: one row per density, with yes, no or too few replicates."""

from __future__ import annotations

from collections.abc import Callable

from hf_lottery.report.section import Section
from hf_lottery.results import formatting
from hf_lottery.results.table import Cell
from hf_lottery.results.verdict import Finding, RoundVerdict, Verdict


def judgement(found: Verdict) -> list[Section]:
    """The table of answers, as a list of one section; empty while there is no round to judge."""
    if not found.rounds:
        return []
    headings = ["density", "matching dense?", *(f"better than {control}?" for control in found.controls())]
    headings += ["winning ticket?", "earlier than dense?", "speed-up"]
    margin = formatting.difference(found.tolerance, found.metric, signed=False)
    when = "the early-stop step" if found.early_stop else "the end of training"
    sentence = (
        f"Matching: test {found.metric} at {when} within {margin} of dense. A difference is the mean over "
        "paired replicates, signed so that + favours the ticket, with its 95% interval and the number n of "
        "pairs. Winning: matching, and better than random_reinit and random_mask where they were run. Speed-up: dense "
        "early-stop step / the ticket's."
    )
    body = [_judgement_row(found, judged) for judged in found.rounds]
    return [Section(f"Verdict by density, at {when}", [sentence], (headings, body))]


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
    return Cell(finding.answer, f"{show(finding)}, n = {count}" if count else "")
