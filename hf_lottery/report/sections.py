"""The report's sections: the heading, text, table and plot of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from hf_lottery.finished import whole_file
from hf_lottery.layout import (
    DATA_NOTES_FILE,
    GENERATIONS_FILE,
    INSTABILITY_FILE,
    INSTABILITY_FOLDER,
    TICKET,
    Network,
)
from hf_lottery.pruning.coverage import Coverage
from hf_lottery.report import plots, style
from hf_lottery.report.forgetting import forgetting
from hf_lottery.report.judgement import judgement
from hf_lottery.report.rates import learning_rates
from hf_lottery.report.section import Section
from hf_lottery.results import formatting
from hf_lottery.results.curves import Curve, learning_curve
from hf_lottery.results.linear_path import STABLE_BELOW, Instability, from_dict
from hf_lottery.results.overlap import Overlap, overlaps
from hf_lottery.results.results import Line, Results
from hf_lottery.results.table import Cell, caption, rows
from hf_lottery.results.verdict import Verdict
from hf_lottery.sealed import DamagedFile, read_sealed, read_sealed_text


def make_sections(
    output_dir: Path, results: Results, at_end: Verdict, at_early_stop: Verdict, bars: str
) -> list[Section]:
    """All sections for which there is something to show.

    Args:
        output_dir: a run's output folder.
        results: its finished networks.
        at_end, at_early_stop: the verdicts at the end of training and at the early-stop step.
        bars: what the bars in the plots show; see `plots.BARS`.
    """
    return [
        _metric(results, bars),
        *judgement(at_end),
        *learning_rates(results),
        *_speed(results, bars),
        *judgement(at_early_stop),
        *forgetting(results),
        *_curves(output_dir, results),
        *_curves_with_controls(output_dir, results, at_end),
        *_coverage(results),
        *_layers(results),
        *_overlap(output_dir, results),
        *_instability(output_dir),
        *_generations(output_dir, results),
        *_data(output_dir),
        _method(at_end),
    ]


def _metric(results: Results, bars: str) -> Section:
    return Section(
        f"Test {results.metric} against density",
        [caption(results), _bars(bars)],
        rows(results),
        (results.metric.name, plots.metric_against_density(results, bars=bars)),
    )


def _bars(bars: str) -> str:
    what = "smallest and largest value over replicates" if bars == "min-max" else "95% Student-t interval"
    return f"Bars: {what}. Points at one density are moved sideways so that none hides another."


def _speed(results: Results, bars: str) -> list[Section]:
    metric = results.metric
    sections = []
    if any(results.values("early_stop_step", TICKET, round) for round in results.rounds()):
        sentence = (
            "The step of minimum validation loss, found afterwards: training ran its full budget. Lower is faster."
        )
        plot = ("early-stop-step", plots.early_stop_against_density(results, bars))
        sections.append(Section("Early-stop step against density", [sentence, _bars(bars)], plot=plot))
    if any(results.values(f"early_stop_test_{metric}", TICKET, round) for round in results.rounds()):
        plot = (f"early-stop-{metric}", plots.metric_against_density(results, early_stop=True, bars=bars))
        sections.append(Section(f"Test {metric} at the early-stop step", [_bars(bars)], plot=plot))
    return sections


def _curves(output_dir: Path, results: Results) -> list[Section]:
    """Learning curves of the ticket, at five densities at most."""
    rounds = style.spread(results.rounds(), 5)
    lines = {formatting.percent(results.density(TICKET, r)): results.select(TICKET, r) for r in rounds}
    curves = _of_lines(output_dir, results, lines)
    return [_curves_section("Learning curves of the ticket", "learning-curves", results, curves)] if curves else []


def _curves_with_controls(output_dir: Path, results: Results, found: Verdict) -> list[Section]:
    """Learning curves of ticket, controls and dense, at the extreme matching density or the sparsest with controls."""
    compared = [round for round in results.rounds() if any(results.select(c, round) for c in results.controls())]
    if not compared:
        return []
    best = found.extreme or found.extreme_on_average
    round = best.round if best and best.round in compared else compared[-1]
    lines = {style.label(control): results.select(control, round) for control in [TICKET, *results.controls()]}
    lines[style.DENSE] = results.select(TICKET, 0)
    curves = _of_lines(output_dir, results, lines)
    if len(curves) < 2:
        return []
    heading = f"Learning curves at {formatting.percent(results.density(TICKET, round))} density, with controls"
    return [_curves_section(heading, "learning-curves-controls", results, curves)]


def _of_lines(output_dir: Path, results: Results, lines: Mapping[str, Iterable[Line]]) -> dict[str, Curve]:
    """Label -> learning curve, without the empty ones."""
    curves = {name: learning_curve(output_dir, own, f"test_{results.metric}") for name, own in lines.items()}
    return {name: curve for name, curve in curves.items() if curve}


def _curves_section(heading: str, plot: str, results: Results, curves: Mapping[str, Curve]) -> Section:
    sentence = f"Test {results.metric} during training: mean over replicates and samples, band min–max."
    return Section(heading, [sentence], plot=(plot, plots.learning_curves(curves, results.metric)))


def _coverage(results: Results) -> list[Section]:
    """What the masks are over; of folders of older versions this is not known."""
    line = next((line for line in results.lines if line["control"] == TICKET and line.get("coverage")), None)
    if line is None:
        return []
    try:
        covered = str(Coverage.from_dict(line["coverage"]))
    except ValueError:
        return []
    sentences = [f"{covered[0].upper()}{covered[1:]}."]
    if line.get("start_from") == "zeros":
        sentences.append(
            "The search started from a sparse model: its zeros are pruned from round 0 on, and densities count all "
            "prunable weights, these among them."
        )
    return [Section("What the mask covers", sentences)]


def _layers(results: Results) -> list[Section]:
    if not any(line["round"] and line.get("densities") for line in results.lines if line["control"] == TICKET):
        return []
    sentence = "Kept / all weights of every masked tensor of the ticket, counted from its masks."
    return [Section("Density per layer", [sentence], plot=("density-per-layer", plots.density_per_layer(results)))]


def _overlap(output_dir: Path, results: Results) -> list[Section]:
    shared = [row for row in overlaps(output_dir, results) if row["n"]]
    if not shared:
        return []
    sentence = (
        "Jaccard overlap of the kept weights (kept by both / by either), over all pairs of replicates, and what two "
        "random masks of the same layer-wise densities share on average."
    )
    table = (["density", "overlap", "chance", "pairs"], [_overlap_row(row) for row in shared])
    plot = ("mask-overlap", plots.overlap_against_density(shared))
    return [Section("Mask overlap between replicates", [sentence], table, plot)]


def _overlap_row(row: Overlap) -> list[Cell]:
    return [
        Cell(formatting.percent(row["density"])),
        Cell(f"{row['jaccard']:.3f}", f"{row['minimum']:.3f}–{row['maximum']:.3f}"),
        Cell(f"{row['chance']:.3f}"),
        Cell(str(row["n"])),
    ]


def _instability(output_dir: Path) -> list[Section]:
    folders = sorted((output_dir / INSTABILITY_FOLDER).glob("round-*-step-*"))
    files = [sorted(folder.glob(f"replicate-*/{INSTABILITY_FILE}")) for folder in folders]
    measured = [found for paths in files if (found := [one for path in paths if (one := _measured(path))])]
    if not measured:
        return []
    sentence = (
        "Largest error on the straight line between two copies trained from step k under different data orders, "
        f"minus their mean error; below {STABLE_BELOW:.0%} the network is stable at step k (Frankle et al. 2020)."
    )
    headings = ["density", "step k", "instability", "pairs", "stable?"]
    return [Section("Instability", [sentence], (headings, [_instability_row(found) for found in measured]))]


def _measured(path: Path) -> Instability | None:
    """What was measured; None where the file is damaged, which `damages` says."""
    try:
        return from_dict(read_sealed(path))
    except (DamagedFile, KeyError, TypeError):
        return None


def _instability_row(found: list[Instability]) -> list[Cell]:
    """One density and step, over all replicates."""
    pairs = [path.instability for each in found for path in each.paths]
    mean = sum(pairs) / len(pairs)
    return [
        Cell(formatting.percent(found[0].density)),
        Cell(f"{found[0].rewind_step:,}"),
        Cell(f"{mean:.2%}", f"{min(pairs):.2%}–{max(pairs):.2%}"),
        Cell(str(len(pairs))),
        Cell("yes" if mean < STABLE_BELOW else "no"),
    ]


def _generations(output_dir: Path, results: Results) -> list[Section]:
    """The answers of language models to fixed prompts: one replicate's tickets, before and after training."""
    body, replicate = [], results.first_whole()
    for line in results.lines:
        if line["control"] != TICKET or line["replicate"] != replicate:
            continue
        for record in _answers(Network.of_line(line).folder(output_dir)):
            texts = [record["prompt"], *(record.get(key, formatting.NOTHING) for key in ("before", "after"))]
            body.append([Cell(formatting.percent(line["density"])), *(Cell(_cut(text)) for text in texts)])
    if not body:
        return []
    which = f"replicate {replicate}" if replicate else "the first replicate"
    sentence = f"Greedy answers to fixed prompts, at the start and at the end of each training of {which}."
    return [Section("Answers before and after", [sentence], (["density", "prompt", "before", "after"], body))]


def _answers(folder: Path) -> list[dict[str, str]]:
    """The prompts and answers of a network; none where there are none, or the file is damaged."""
    try:
        return json.loads(whole_file(folder, GENERATIONS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def _cut(answer: str, most: int = 300) -> str:
    """On one line, as a cell of a Markdown table must be, and at most `most` characters."""
    answer = " ".join(answer.split())
    return answer if len(answer) <= most else f"{answer[: most - 1]}…"


def _data(output_dir: Path) -> list[Section]:
    """What the task noted about its data."""
    try:
        return [Section("The data", read_sealed_text(output_dir / DATA_NOTES_FILE).splitlines())]
    except (FileNotFoundError, DamagedFile):
        return []


_DIVERGED = (
    "A network that diverged, or whose metric is NaN or infinite, has the worst outcome: from the round on at which a "
    "replicate's ticket diverged no answer is yes, and where a control diverged the ticket is not called no better "
    "than it. The intervals are of the other replicates, so n falls."
)


def _method(found: Verdict) -> Section:
    margin = formatting.difference(found.tolerance, found.metric, signed=False)
    return Section(
        "How it was judged",
        [
            "A replicate is the whole experiment under another seed; a control's samples within a replicate are "
            "averaged before anything else.",
            "Differences are paired by replicate, and tested by one-sided Student t tests; intervals are 95% "
            "Student-t intervals of the mean difference, each density and control by itself. A deviation is never "
            "taken as smaller than the step of the grid that the metric is measured on.",
            f"Matching: yes when the mean is shown to be above −{margin}, no when below. Better: yes when it is above "
            f"0, no when below {margin} (any advantage is smaller than the tolerance). Earlier: yes when it is above "
            "0 steps, no when below. Otherwise it is undecided; fewer than 3 replicates decide nothing.",
            "Each question is asked at many densities. Holm's correction keeps the probability that any of its yes "
            'answers is wrong at 2.5%, and so for its no answers. "Matching down to" is a fixed sequence from dense '
            "to sparse, each at 2.5%: it ends at the first density that is not shown to match. A winning ticket "
            "matches and is better than both controls at one density; Holm corrects the greatest of the three p "
            "values. Adding replicates until an answer is yes is not covered, except by `replicates: auto`.",
            *([_DIVERGED] if found.diverged else []),
            "Densities are counted from the masks. The early-stop step is the evaluated step of minimum validation "
            "loss, so it is known to within the evaluation interval.",
        ],
    )
