"""The report's section on forgetting: the loss on text that the task does not hold, before and after training."""

from __future__ import annotations

from hf_lottery.layout import TICKET
from hf_lottery.report import style
from hf_lottery.report.section import Section
from hf_lottery.results import formatting
from hf_lottery.results.forgetting import AFTER, BEFORE, FORGETTING, NATS, explained
from hf_lottery.results.results import Results
from hf_lottery.results.statistics import estimate
from hf_lottery.results.table import Cell


def forgetting(results: Results) -> list[Section]:
    """One row per round: the losses of pretrained model and ticket, and the rise, of the controls too.

    Empty if no network has them.
    """
    if not results.has(FORGETTING):
        return []
    interval = " with its 95% Student-t interval" if len(results.replicates()) > 1 else ""
    sentence = (
        f"{explained(results.lines)} Losses are means over replicates (min–max); the rise is the mean{interval}, of "
        "which a lower one is better."
    )
    headings = ["density", "loss before", "loss after", FORGETTING, *map(style.label, results.controls())]
    rounds = sorted({line["round"] for line in results.lines})
    return [Section("Forgetting", [sentence], (headings, [_row(results, round) for round in rounds]))]


def _row(results: Results, round: int) -> list[Cell]:
    return [
        Cell(formatting.percent(results.density(TICKET, round)), "dense" if round == 0 else ""),
        *(_loss(results, key, round) for key in (BEFORE, AFTER)),
        *(_rise(results, control, round) for control in (TICKET, *results.controls())),
    ]


def _loss(results: Results, key: str, round: int) -> Cell:
    found = estimate(results.values(key, TICKET, round).values())
    return Cell(formatting.value(found.mean, NATS), formatting.value_range(found, NATS))


def _rise(results: Results, control: str, round: int) -> Cell:
    found = estimate(results.values(FORGETTING, control, round).values())
    of = len({line["replicate"] for line in results.select(control, round)})
    return Cell(formatting.nats_interval(found), f"n = {found.n} of {of}" if found.n < of else "")
