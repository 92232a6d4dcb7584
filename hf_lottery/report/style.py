"""What all plots have in common: a marker and a line style for every control, axes, and writing the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from hf_lottery.files import replacing
from hf_lottery.layout import TICKET
from hf_lottery.results import formatting
from hf_lottery.results.metric import Metric

# name -> (marker, line, colour of the Okabe–Ito palette, made for colour-blind readers)
STYLES = {
    TICKET: ("o", "-", "#0072B2"),
    "random_reinit": ("s", "--", "#D55E00"),
    "random_mask": ("^", ":", "#009E73"),
    "no_rewinding": ("v", "-.", "#CC79A7"),
    "learning_rate_rewinding": ("D", (0, (5, 1, 1, 1, 1, 1)), "#E69F00"),
    "one_shot": ("P", (0, (3, 3)), "#56B4E9"),
    "shuffled_weights": ("X", (0, (1, 2)), "#666666"),
    "signed_reinit": ("*", (0, (7, 2)), "#000000"),
    "set": ("<", (0, (1, 3)), "#F0E442"),
    "rigl": (">", (0, (5, 2, 1, 2)), "#8C510A"),
}
DENSE, DENSE_STYLE = "dense", ("x", "-", "#444444")
OTHER_STYLE = ("h", (0, (2, 1)), "#444444")
_RC = {
    "svg.hashsalt": "hf_lottery",  # the same results give the same file
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def label(control: str) -> str:
    """A control's name as plots write it."""
    return control.replace("_", " ")


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread, the first and the last included."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def save(figure: Figure, folder: str | os.PathLike, name: str) -> list[Path]:
    """Write `name.png` (at 150 dots an inch) and `name.svg` into the folder."""
    paths = [Path(folder) / f"{name}.png", Path(folder) / f"{name}.svg"]
    with matplotlib.rc_context(_RC):
        with replacing(paths[0]) as partial:
            figure.savefig(partial, dpi=150)
        with replacing(paths[1]) as partial:
            figure.savefig(partial, metadata={"Date": None})
    return paths


def new_figure() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(7.2, 4.3), layout="constrained")
        return figure, figure.add_subplot()


def add_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = len(labels) if sum(map(len, labels)) + 8 * len(labels) <= 90 else 4
        figure.legend(loc="outside upper center", ncols=columns, fontsize=9, frameon=False, handlelength=3.2)


def density_axis(axes: Axes, densities: set[float]) -> None:
    """A log axis on which density falls to the right, with the measured densities as ticks (the papers' P_m)."""
    axes.set_xscale("log")
    axes.set_xlabel("weights remaining (density, log scale)")
    found = sorted((d for d in densities if d > 0), reverse=True)
    if not found:
        return
    ticks = [found[i] for i in spread(range(len(found)), 9)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([formatting.percent(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    room = (found[0] / found[-1]) ** 0.04 * 1.03
    axes.set_xlim(found[0] * room, found[-1] / room)


def percent_ticks(axis: Axis, lowest: float) -> None:
    ticks = [t for t in (1, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 1e-4) if t >= lowest / 2.5]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([formatting.percent(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def metric_axis(axis: Axis, metric: Metric) -> None:
    """Accuracies in percent; perplexity and loss as they are."""
    if metric.greater_is_better:
        percent_axis(axis)


def percent_axis(axis: Axis) -> None:
    """Fractions in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def step_axis(axis: Axis) -> None:
    """Steps with a comma between thousands."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
