"""The report's section on learning rates: what each was worth at validation, and which one was taken."""

from __future__ import annotations

import math

from hf_lottery.layout import TICKET
from hf_lottery.report.section import Section
from hf_lottery.results import formatting
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results
from hf_lottery.results.table import Cell
from hf_lottery.results.tuned import Choice, Tried

_TAKEN = "taken"


def learning_rates(results: Results) -> list[Section]:
    """One row for each control and density with other learning rates than the recipe's own; empty without any."""
    found = {group: choice for group, choice in results.choices.items() if results.learning_rate(*group) is not None}
    if not found:
        return []
    one = next(iter(found.values()))
    rates = sorted({tried.rate for choice in found.values() for tried in choice.tried})
    names = [TICKET, *results.controls()]
    body = [
        [
            Cell("dense" if (control, number) == (TICKET, 0) else control.replace("_", " ")),
            Cell(formatting.percent(results.density(control, number))),
            *_row(found[control, number], rates, results.metric),
        ]
        for control, number in sorted(found, key=lambda group: (names.index(group[0]), group[1]))
    ]
    headings = ["network", "density", *(f"{rate}{' (own)' if rate == one.own else ''}" for rate in rates)]
    return [Section("Learning rates", _sentences(results, one), (headings, body))]


def _sentences(results: Results, one: Choice) -> list[str]:
    said = [
        f"Mean {one.measure} at the end of training, at each learning rate that was tried; {one.own} is the recipe's "
        "own. For each row the best is taken, over all replicates together, and all tables, plots and verdicts are of "
        "it, also those at the early-stop step. Test values have no part in the choice. A rate with a network that "
        "diverged is taken only if every rate has one. The masks of the tickets are from the search, which has the "
        "recipe's own learning rate."
    ]
    if all(results.learning_rate(TICKET, number) is None for number in results.rounds()):
        said.append(
            "The dense network and the tickets have the recipe's own learning rate alone, which can favour the "
            "controls that have others; `experiment.tune: learning_rate` tries them for all."
        )
    return said


def _row(choice: Choice, rates: list[float], metric: Metric) -> list[Cell]:
    tried = {one.rate: one for one in choice.tried}
    return [_cell(tried[rate], choice, metric) if rate in tried else Cell(formatting.NOTHING) for rate in rates]


def _cell(one: Tried, choice: Choice, metric: Metric) -> Cell:
    of_loss = Metric("loss", greater_is_better=False)
    value = formatting.value(one.mean, metric if choice.key == f"eval_{metric}" else of_loss)
    parts = [_TAKEN] if one.rate == choice.rate else []
    parts += [] if math.isnan(one.mean) else [f"n = {one.count}"]
    parts += [f"{one.lost} diverged"] if one.lost else []
    parts += [f"{one.unfinished} not finished"] if one.unfinished else []
    return Cell(value, ", ".join(parts))
