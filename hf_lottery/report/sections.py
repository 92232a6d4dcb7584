"""The report's sections: what is said, which table and which plot stand under which heading."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from hf_lottery.report import plots, style
from hf_lottery.results import formatting
from hf_lottery.results.curves import learning_curve
from hf_lottery.results.linear_path import STABLE_BELOW
from hf_lottery.results.overlap import overlaps
from hf_lottery.results.results import TICKET, Results, unit_folder, unit_of
from hf_lottery.results.table import caption, rows
from hf_lottery.results.verdict import Finding, Verdict, verdict, verdict_controls
from hf_lottery.tasks import DATA_NOTES_FILE

Table = tuple[list[str], list[list[str]]]  # headings, rows


@dataclass
class Section:
    """A part of the report: a heading, sentences, and a table or a plot (file name without ending, figure)."""

    heading: str
    sentences: list[str] = field(default_factory=list)
    table: Table | None = None
    plot: tuple[str, Figure] | None = None


def make_sections(output_dir: Path, results: Results, tolerance: float, bars: str) -> list[Section]:
    """All sections for which there is something to show."""
    found = verdict(results, tolerance)
    return [
        _metric(results, bars),
        *judgement(found),
        *_speed(results, bars),
        *judgement(verdict(results, tolerance, early_stop=True)),
        *_curves(output_dir, results, found),
        *_layers(results),
        *_overlap(output_dir, results),
        *_instability(output_dir),
        *_generations(output_dir, results),
        *_data(output_dir),
        _method(found),
    ]


def _metric(results: Results, bars: str) -> Section:
    return Section(
        f"Test {results.metric} against density",
        [caption(results), _bars(bars)],
        rows(results),
        (results.metric, plots.metric_against_density(results, bars=bars)),
    )


def _bars(bars: str) -> str:
    what = "smallest and largest value over replicates" if bars == "min-max" else "95% Student-t interval"
    return f"Bars: {what}. Points at one density are set apart sideways so that none hides another."


def judgement(found: Verdict) -> list[Section]:
    """The table of yes, no and too few replicates; nothing while there is no round to judge."""
    if not found.rounds:
        return []
    controls = verdict_controls(found)
    headings = ["density", "matching dense?", *(f"better than {control}?" for control in controls)]
    headings += ["winning ticket?", "earlier than dense?", "speed-up"]
    body = []
    for r in found.rounds:
        row = [formatting.percent(r.density), _cell(r.matching, found.metric)]
        row += [_cell(r.better[c], found.metric) if c in r.better else formatting.NOTHING for c in controls]
        row += [r.winning, _steps_cell(r.earlier), formatting.times(r.speedup)]
        body.append(row)
    margin = formatting.difference(found.tolerance, found.metric, signed=False)
    when = "the early-stop step" if found.early_stop else "the end of training"
    sentence = (
        f"Matching: test {found.metric} at {when} within {margin} of dense. A difference is the mean over "
        "paired replicates, signed so that + favours the ticket, with its 95% interval and the number n of "
        "pairs. Winning: matching, and better than random_reinit and random_mask where they were run. Speed-up: dense "
        "early-stop step / the ticket's."
    )
    return [Section(f"Verdict by density, at {when}", [sentence], (headings, body))]


def _cell(finding: Finding, metric: str) -> str:
    if not finding.difference.n:
        return finding.answer
    return f"{finding.answer} ({formatting.with_interval(finding.difference, metric)}, n = {finding.difference.n})"


def _steps_cell(finding: Finding) -> str:
    if not finding.difference.n:
        return finding.answer
    return f"{finding.answer} ({formatting.steps_difference(finding.difference)}, n = {finding.difference.n})"


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


def _curves(output_dir: Path, results: Results, found: Verdict) -> list[Section]:
    metric = results.metric
    key = f"test_{metric}"
    sentence = f"Test {metric} during training: mean over replicates and samples, band min–max."
    sections = []

    own = {}
    for round in style.spread(results.rounds(), 5):
        own[formatting.percent(results.density(TICKET, round))] = learning_curve(
            output_dir, results.select(TICKET, round), key
        )
    own = {name: curve for name, curve in own.items() if curve}
    if own:
        plot = ("learning-curves", plots.learning_curves(own, metric, f"test {metric}"))
        sections.append(Section("Learning curves of the ticket", [sentence], plot=plot))

    compared = [round for round in results.rounds() if any(results.select(c, round) for c in results.controls())]
    if not compared:
        return sections
    # where the question is decided: the extreme matching density, or else the sparsest that has controls
    best = found.extreme or found.extreme_on_average
    round = best.round if best and best.round in compared else compared[-1]
    lines = {style.label(control): results.select(control, round) for control in [TICKET, *results.controls()]}
    lines["dense"] = results.select(TICKET, 0)
    curves = {name: learning_curve(output_dir, found_lines, key) for name, found_lines in lines.items()}
    curves = {name: curve for name, curve in curves.items() if curve}
    if len(curves) > 1:
        at = formatting.percent(results.density(TICKET, round))
        plot = ("learning-curves-controls", plots.learning_curves(curves, metric, f"test {metric}"))
        sections.append(Section(f"Learning curves at {at} density, with controls", [sentence], plot=plot))
    return sections


def _layers(results: Results) -> list[Section]:
    if not any(line["round"] and line.get("densities") for line in results.lines if line["control"] == TICKET):
        return []
    sentence = "Kept / all weights of every masked tensor of the ticket, counted from its masks."
    return [Section("Density per layer", [sentence], plot=("density-per-layer", plots.density_per_layer(results)))]


def _overlap(output_dir: Path, results: Results) -> list[Section]:
    shared = [row for row in overlaps(output_dir, results) if row["n"]]
    if not shared:
        return []
    body = [
        [
            formatting.percent(row["density"]),
            f"{row['jaccard']:.3f} ({row['minimum']:.3f}–{row['maximum']:.3f})",
            f"{row['chance']:.3f}",
            str(row["n"]),
        ]
        for row in shared
    ]
    sentence = (
        "Jaccard overlap of the kept weights (kept by both / by either), over all pairs of replicates, and what two "
        "random masks of the same layer-wise densities share on average."
    )
    plot = ("mask-overlap", plots.overlap_against_density(shared))
    return [
        Section("Mask overlap between replicates", [sentence], (["density", "overlap", "chance", "pairs"], body), plot)
    ]


def _instability(output_dir: Path) -> list[Section]:
    body = []
    for folder in sorted((output_dir / "instability").glob("round-*-step-*")):
        measured = [json.loads(path.read_text()) for path in sorted(folder.glob("replicate-*/instability.json"))]
        pairs = [value for each in measured for value in each["instability_of_pairs"]]
        if pairs:
            mean = sum(pairs) / len(pairs)
            body.append(
                [
                    formatting.percent(measured[0]["density"]),
                    f"{measured[0]['rewind_step']:,}",
                    f"{mean:.2%} ({min(pairs):.2%}–{max(pairs):.2%})",
                    str(len(pairs)),
                    "yes" if mean < STABLE_BELOW else "no",
                ]
            )
    if not body:
        return []
    sentence = (
        "Greatest error on the straight line between two copies trained from step k under different data orders, less "
        f"the mean error of the two; below {STABLE_BELOW:.0%} the network is stable at step k (Frankle et al. 2020)."
    )
    headings = ["density", "step k", "instability", "pairs", "stable?"]
    return [Section("Instability", [sentence], (headings, body))]


def _generations(output_dir: Path, results: Results) -> list[Section]:
    """What language models answered to fixed prompts: the first replicate's, side by side."""
    body = []
    for line in results.lines:
        path = unit_folder(output_dir, unit_of(line)) / "generations.json"
        if line["control"] != TICKET or line["replicate"] != 0 or not path.is_file():
            continue
        for record in json.loads(path.read_text(encoding="utf-8")):
            answers = [_cut(record.get(key, "–")) for key in ("before", "after")]
            body.append([formatting.percent(line["density"]), _cut(record["prompt"]), *answers])
    if not body:
        return []
    sentence = "Greedy answers to fixed prompts, at the start and at the end of each training of the first replicate."
    return [Section("Answers before and after", [sentence], (["density", "prompt", "before", "after"], body))]


def _cut(answer: str, most: int = 300) -> str:
    # a table's cell is one line, and a bracket after a space is small print there
    answer = " ".join(answer.split()).replace(" (", "\u00a0(")
    return answer if len(answer) <= most else f"{answer[: most - 1]}…"


def _data(output_dir: Path) -> list[Section]:
    """What a task had to say about its data."""
    path = output_dir / DATA_NOTES_FILE
    return [Section("The data", path.read_text(encoding="utf-8").splitlines())] if path.is_file() else []


def _method(found: Verdict) -> Section:
    margin = formatting.difference(found.tolerance, found.metric, signed=False)
    return Section(
        "How it was judged",
        [
            "A replicate is the whole experiment under another seed; a control's samples within a replicate are "
            "averaged before anything else.",
            "Differences are paired by replicate; intervals are 95% Student-t intervals of the mean difference, each "
            "density and control by itself, without a correction for judging several.",
            f"Matching: yes when the whole interval lies above −{margin}, no when it lies below. Better: yes when it "
            f"lies above 0, no when it lies below {margin} (any advantage is smaller than the tolerance). Earlier: "
            "yes when it lies above 0 steps, no when below. Otherwise, and with fewer than 3 replicates: too few "
            "replicates to say.",
            "Densities are counted from the masks. The early-stop step is the evaluated step of minimum validation "
            "loss, so it is known to within the evaluation interval.",
        ],
    )
