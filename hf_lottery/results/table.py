"""The table of a run: a row a round, with density, test metric, early-stop step and the controls beside it."""

from __future__ import annotations

import rich.box
import rich.table

from hf_lottery.results import formatting
from hf_lottery.results.results import TICKET, Results
from hf_lottery.results.statistics import estimate


def rows(results: Results, early_stop_metric: bool = True) -> tuple[list[str], list[list[str]]]:
    """(headings, a row a round): the one table that the terminal, the page and the card show.

    Values are means over replicates with min–max; a replicate's samples are averaged first.

    Args:
        results: the finished units.
        early_stop_metric: add the test metric at the early-stop step.
    """
    metric = results.metric
    key = f"test_{metric}"
    controls = results.controls()
    headings = ["round", "density", f"test {metric}", "early-stop step"]
    headings += [f"test {metric} there"] * early_stop_metric + controls
    body = []
    for round in sorted({line["round"] for line in results.lines}):
        row = [
            f"{round} (dense)" if round == 0 else str(round),
            formatting.percent(results.density(TICKET, round)),
            formatting.with_range(estimate(results.values(key, TICKET, round).values()), metric),
            formatting.steps(estimate(results.values("early_stop_step", TICKET, round).values())),
        ]
        if early_stop_metric:
            row.append(
                formatting.with_range(estimate(results.values(f"early_stop_{key}", TICKET, round).values()), metric)
            )
        for control in controls:
            row.append(formatting.with_range(estimate(results.values(key, control, round).values()), metric))
        body.append(row)
    return headings, body


def caption(results: Results) -> str:
    """What the numbers of the table are, in one line."""
    count = len(results.replicates())
    if count == 1:
        return "1 replicate. Density is counted from the mask; a control's samples are averaged."
    return (
        f"Mean over {count} replicates (min–max). Density is counted from the mask; "
        "a control's samples are averaged within a replicate first."
    )


def table(results: Results | list[dict]) -> rich.table.Table:
    """The closing table of a run, for a terminal: `rich.print(table(lines))`.

    Args:
        results: what `read_results` gives, or lines of results.jsonl.
    """
    if not isinstance(results, Results):
        results = Results(list(results))
    headings, body = rows(results, early_stop_metric=False)
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=caption(results), caption_justify="left")
    for heading in headings:
        shown.add_column(heading.replace("_", " "), justify="right", overflow="fold")
    for row in body:
        # a range goes below its mean, so that a row with its controls fits into 80 columns
        shown.add_row(row[0], *(cell.replace(" (", "\n").rstrip(")") for cell in row[1:]))
    return shown
