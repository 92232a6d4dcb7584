"""The table of a run as a terminal shows it."""

from __future__ import annotations

import rich.box
import rich.table

from hf_lottery.results.results import Results
from hf_lottery.results.table import caption, rows


def table(results: Results) -> rich.table.Table:
    """The closing table of a run, for a terminal: `rich.print(table(read_results(output_dir)))`."""
    headings, body = rows(results, early_stop_metric=False)
    padding = (0, 1) if len(headings) <= 6 else (0, 0)  # there is a space between columns anyway
    shown = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, caption=caption(results), caption_justify="left", padding=padding
    )
    for heading in headings:
        shown.add_column(heading.replace("_", " "), justify="right", overflow="fold")
    for first, *others in body:
        # a range goes below its mean, and what else is said below that, so that a row fits into 80 columns
        below = (cell.detail.replace(", ", "\n") for cell in others)
        shown.add_row(
            str(first), *("\n".join(filter(None, pair)) for pair in zip((c.value for c in others), below, strict=True))
        )
    return shown
