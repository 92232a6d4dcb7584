"""Plots of an experiment as matplotlib figures, readable without colour: every control has its marker and line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_lottery.layout import TICKET
from hf_lottery.report.style import (
    DENSE,
    DENSE_STYLE,
    OTHER_STYLE,
    STYLES,
    add_legend,
    density_axis,
    label,
    metric_axis,
    new_figure,
    percent_axis,
    percent_ticks,
    spread,
    step_axis,
)
from hf_lottery.results import formatting
from hf_lottery.results.linear_path import LinearPath
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results
from hf_lottery.results.statistics import Estimate, estimate

BARS = ("min-max", "interval")


def metric_against_density(results: Results, early_stop: bool = False, bars: str = "min-max") -> Figure:
    """The test metric against density, ticket and controls, as Frankle & Carbin 2019, Figs. 4 and 5.

    Args:
        results: the finished networks.
        early_stop: the metric at the early-stop step instead of at the end of training.
        bars: `min-max` over replicates, or `interval`, the 95% Student-t interval of the mean.
    """
    metric = results.metric
    key = f"{'early_stop_' if early_stop else ''}test_{metric}"
    where = "at the early-stop step" if early_stop else "at the end of training"
    figure, axes = _density_figure(results, key, bars)
    axes.set_ylabel(f"test {metric} {where}")
    metric_axis(axes.yaxis, metric)
    return figure


def early_stop_against_density(results: Results, bars: str = "min-max") -> Figure:
    """The early-stop step (of minimum validation loss) against density: how fast each network learns."""
    figure, axes = _density_figure(results, "early_stop_step", bars)
    axes.set_ylabel("early-stop step")
    step_axis(axes.yaxis)
    return figure


def _density_figure(results: Results, key: str, bars: str) -> tuple[Figure, Axes]:
    figure, axes = new_figure()
    names = [TICKET, *results.controls()]
    for place, control in enumerate(names):
        points = []
        for round in results.rounds(control):
            found = estimate(results.values(key, control, round).values())
            if found.n:
                points.append((results.density(control, round), found))
        if points:
            # moved apart by 1.5% of the density, so that the bars of controls do not hide each other
            shift = 1.015 ** (place - (len(names) - 1) / 2)
            _series(axes, [x * shift for x, _ in points], [found for _, found in points], control, bars)
    dense = estimate(results.values(key, TICKET, 0).values())
    if dense.n:
        axes.axhline(dense.mean, color="#444444", linewidth=0.8, zorder=1)
        axes.annotate(DENSE, (1, dense.mean), xycoords=("axes fraction", "data"), va="bottom", ha="right", fontsize=8)
    density_axis(axes, {results.density(TICKET, round) for round in results.rounds(TICKET)})
    add_legend(figure, axes)
    return figure, axes


def _series(axes: Axes, x: Sequence[float], found: Sequence[Estimate], control: str, bars: str) -> None:
    marker, line, colour = STYLES.get(control, OTHER_STYLE)
    means = [point.mean for point in found]
    ends = [_ends(point, bars) for point in found]
    below = [mean - low for mean, (low, _) in zip(means, ends, strict=True)]
    above = [high - mean for mean, (_, high) in zip(means, ends, strict=True)]
    axes.errorbar(
        x, means, yerr=(below, above), label=label(control), marker=marker, linestyle=line, color=colour,
        markersize=5, linewidth=1.4, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip


def _ends(found: Estimate, bars: str) -> tuple[float, float]:
    if bars not in BARS:
        raise ValueError(f"bars is {bars!r}; it must be one of {', '.join(BARS)}")
    if bars == "min-max" or found.n < 2:
        return found.minimum, found.maximum
    return found.low, found.high


def learning_curves(curves: Mapping[str, Mapping[int, Sequence[float]]], metric: Metric) -> Figure:
    """A metric against training steps, one line for each density, as Frankle & Carbin 2019, Fig. 3.

    Args:
        curves: label -> step -> the test metric of every network that was evaluated at that step. Lines are means,
            the band is min–max.
        metric: what is shown.
    """
    figure, axes = new_figure()
    styles = list(STYLES.values())
    own = {label(control): style for control, style in STYLES.items()} | {DENSE: DENSE_STYLE}
    for place, (name, steps) in enumerate(curves.items()):
        marker, line, colour = own.get(name, styles[place % len(styles)])
        x = sorted(steps)
        found = [estimate(steps[step]) for step in x]
        axes.plot(
            x, [point.mean for point in found], label=name, color=colour, linestyle=line, linewidth=1.4,
            marker=marker, markersize=5, markevery=(place, max(1, len(x) // 8)),
        )  # fmt: skip
        low, high = [point.minimum for point in found], [point.maximum for point in found]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    _focus(axes, curves)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"test {metric}")
    step_axis(axes.xaxis)
    metric_axis(axes.yaxis, metric)
    add_legend(figure, axes)
    return figure


def _focus(axes: Axes, curves: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """Set a y range that shows the second half of training well; the steep start may be outside of it."""
    points = [(step, value) for steps in curves.values() for step, found in steps.items() for value in found]
    last = max((step for step, _ in points), default=0)
    late = [value for step, value in points if step >= last / 2]
    low, high = min(late, default=0), max(late, default=0)
    if low == high:
        return
    rising = sum(value for _, value in points) / len(points) < sum(late) / len(late)
    wide, narrow = 1.0 * (high - low), 0.1 * (high - low)
    axes.set_ylim(*((low - wide, high + narrow) if rising else (low - narrow, high + wide)))


def density_per_layer(results: Results, most_rounds: int = 6) -> Figure:
    """Density of every masked tensor, in the model's order, one line for each round; the mean over replicates."""
    figure, axes = new_figure()
    layers = {round: found for round in results.rounds() if round > 0 and (found := _layers(results, round))}
    chosen = spread(list(layers), most_rounds)
    names = list(layers[chosen[0]]) if chosen else []
    lowest = 1.0
    for place, round in enumerate(chosen):
        marker, line, colour = list(STYLES.values())[place % len(STYLES)]
        name = f"{formatting.percent(results.density(TICKET, round))} (round {round})"
        # a layer without weights has no place on a log axis: it is left out of the line
        heights = [layers[round].get(layer, math.nan) or math.nan for layer in names]
        lowest = min([lowest, *(height for height in heights if not math.isnan(height))])
        axes.plot(range(len(names)), heights, label=name, marker=marker, linestyle=line, color=colour, markersize=5)
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.2, 1.1)
    percent_ticks(axes.yaxis, lowest)
    axes.set_ylabel("density of the layer")
    _name_layers(axes, names)
    add_legend(figure, axes)
    return figure


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Names below the x axis; if they are too many, their number."""
    if len(names) <= 24:
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) <= 8 else 90, ha="right", fontsize=8)
    else:
        axes.set_xlabel(f"masked tensor, in the model's order (0 = {names[0]})")


def _layers(results: Results, round: int) -> dict[str, float]:
    """Name -> density of a masked tensor of the ticket, over all replicates."""
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    for line in results.select(TICKET, round):
        for name, (left, all_) in (line.get("densities") or {}).items():
            kept[name] = kept.get(name, 0) + left
            total[name] = total.get(name, 0) + all_
    return {name: kept[name] / total[name] for name in kept}


def overlap_against_density(rows: Iterable[Mapping[str, float]]) -> Figure:
    """Jaccard overlap of the replicates' masks against density, and what chance gives.

    Args:
        rows: what `overlap.overlaps` gives.
    """
    figure, axes = new_figure()
    rows = [row for row in rows if row["n"]]
    x = [row["density"] for row in rows]
    marker, line, colour = STYLES[TICKET]
    means = [row["jaccard"] for row in rows]
    spans = ([m - row["minimum"] for m, row in zip(means, rows, strict=True)],
             [row["maximum"] - m for m, row in zip(means, rows, strict=True)])  # fmt: skip
    axes.errorbar(
        x, means, yerr=spans, label="replicates' masks", marker=marker, linestyle=line, color=colour, capsize=2.5
    )
    marker, line, colour = STYLES["random_mask"]
    # drawn last and hollow, so that both can be seen where they are equal
    axes.plot(
        x, [row["chance"] for row in rows], label="chance, at the same layer-wise densities", marker=marker,
        linestyle=line, color=colour, markersize=9, markerfacecolor="none", zorder=3,
    )  # fmt: skip
    axes.set_ylabel("Jaccard overlap (shared / either)")
    axes.set_ylim(0, 1.03)
    density_axis(axes, set(x))
    add_legend(figure, axes)
    return figure


def error_along_paths(paths: Sequence[LinearPath]) -> Figure:
    """The error on the straight line between two copies, one line for each pair (Frankle et al. 2020, Fig. 2)."""
    figure, axes = new_figure()
    marker, line, colour = STYLES[TICKET]
    for place, path in enumerate(paths):
        name = f"{len(paths)} pairs of copies" if len(paths) > 1 else "a pair of copies"
        axes.plot(
            path.alphas, path.errors, label=name if place == 0 else None, color=colour, alpha=0.6, linewidth=1,
            marker=marker, markersize=3, linestyle=line,
        )  # fmt: skip
    axes.set_xlabel("α, from one copy (0) to the other (1)")
    axes.set_ylabel("test error")
    axes.set_ylim(bottom=0)
    if not paths[0].relative:
        percent_axis(axes.yaxis)
    add_legend(figure, axes)
    return figure
