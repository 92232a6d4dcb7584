"""A section of the report, which the page and the Markdown show alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from hf_lottery.results.table import Cell

Table = tuple[list[str], list[list[Cell]]]  # headings, rows


@dataclass
class Section:
    """A part of the report.

    Args:
        heading: of the section.
        sentences: a paragraph each.
        table: headings and rows.
        plot: (file name without its ending, figure).
        warning: the page marks the section, as something that readers must know.
    """

    heading: str
    sentences: list[str] = field(default_factory=list)
    table: Table | None = None
    plot: tuple[str, Figure] | None = None
    warning: bool = False
