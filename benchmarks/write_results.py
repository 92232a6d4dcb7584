"""Write docs/results.md from runs' own results.jsonl: every figure there was measured by a run that is named.

    python benchmarks/write_results.py outputs/mnist-lenet outputs/quickstart

A section for each output folder: what was run and how to run it again, the verdict, the plots, the tables, and for
LeNet-300-100 on MNIST what the paper reports beside what was measured. The folder of `benchmarks/criteria.py` gets a
ranking of criteria instead. Sections of other runs that the page has are not changed. The files that a section was
written from are copied into a folder beside the page, which can be given here again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from hf_lottery.config import CRITERIA
from hf_lottery.layout import COMMAND_FILE, RECIPE_FILE, RESULTS_FILE, TICKET
from hf_lottery.report import page, plots, style
from hf_lottery.report.forgetting import forgetting
from hf_lottery.report.judgement import judgement
from hf_lottery.results import formatting
from hf_lottery.results.headline import headline
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.statistics import estimate, paired_difference
from hf_lottery.results.table import caption, rows
from hf_lottery.results.verdict import verdict
from hf_lottery.results.written_recipe import WrittenRecipe, read_recipe
from hf_lottery.runner.command import read_command

INTRODUCTION = (
    "Written by `benchmarks/write_results.py` from the runs' own `results.jsonl`; nothing here is typed in by hand "
    "but what papers report, which is marked as theirs."
)


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dirs", nargs="+", type=Path, help="output folders of runs")
    parser.add_argument("--to", type=Path, default=Path("docs/results.md"), help="the page; plots go beside it")
    arguments = parser.parse_args()
    write_page(arguments.output_dirs, arguments.to)
    print(arguments.to)


def write_page(output_dirs: list[Path], to: Path) -> None:
    """Write the sections of some runs into the page and, in a folder of its name beside it, plots and sources.

    Args:
        output_dirs: runs' output folders; a folder's name becomes its section's.
        to: the Markdown file.

    Raises:
        ValueError: two folders have one name.
        FileNotFoundError: a folder has no results.jsonl or recipe.yaml.
    """
    names = [folder.resolve().name for folder in output_dirs]
    if len(set(names)) < len(names):
        raise ValueError(f"two of the output folders have one name, of {', '.join(names)}: sections are named by it")
    beside = to.with_suffix("")
    for name, folder in zip(names, output_dirs, strict=True):
        section = _section(name, folder, beside)
        replace_section(to, name, section)
        keep_source(folder, beside / name)


def replace_section(page_file: Path, name: str, section: str) -> None:
    """Put `section`, which begins with `## name`, where the page has one of that name, or at the page's end."""
    written = page_file.read_text(encoding="utf-8") if page_file.is_file() else f"# Measured results\n\n{INTRODUCTION}"
    head, *sections = re.split(r"^(?=## )", written.strip(), flags=re.MULTILINE)
    by_name = {text.splitlines()[0].removeprefix("## "): text.strip() for text in sections}
    by_name[name] = section.strip()
    page_file.parent.mkdir(parents=True, exist_ok=True)
    page_file.write_text("\n\n".join([head.strip(), *by_name.values()]) + "\n", encoding="utf-8")


def keep_source(folder: Path, to: Path) -> None:
    """Copy what a section is written from into the folder `to`."""
    to.mkdir(parents=True, exist_ok=True)
    for source in (folder / name for name in (RESULTS_FILE, RECIPE_FILE, COMMAND_FILE)):
        if source.is_file() and source.resolve() != (to / source.name).resolve():
            shutil.copyfile(source, to / source.name)


def _section(name: str, folder: Path, plot_folder: Path) -> str:
    results = read_results(folder)
    recipe = read_recipe(folder)
    notes = [f"```\n{command(folder)}\n```", _ran(results), *results.notes]
    if missing := results.missing(recipe.planned()):
        notes.append(f"Not finished: {len(missing)} of the run's networks, the first of them {missing[0]}.")
    if any(control in CRITERIA for control in results.controls()):
        return "\n\n".join([f"## {name}", *notes, *criteria_ranking(results)])
    found = verdict(results)
    parts = [f"## {name}", f"**{headline(found)}**", *notes]
    for plot, figure in (
        (results.metric, plots.metric_against_density(results)),
        ("early-stop-step", plots.early_stop_against_density(results)),
    ):
        png, _ = style.save(figure, plot_folder, f"{name}-{plot}")
        parts.append(f"![{plot} against density]({os.path.relpath(png, plot_folder.parent)})")
    parts += [caption(results), page.markdown_table(*rows(results))]
    for section in [*judgement(found), *judgement(verdict(results, early_stop=True)), *forgetting(results)]:
        parts += [f"### {section.heading}"]
        parts += [*section.sentences, *([page.markdown_table(*section.table)] if section.table else [])]
    if is_lenet_on_mnist(recipe):
        parts += paper_comparison(results)
    return "\n\n".join(parts)


def command(folder: Path) -> str:
    """The command that made the folder: as it was typed where the run kept it (`command`), else from its recipe."""
    kept = (folder / COMMAND_FILE).exists()
    return read_command(folder) if kept else f"hf-lottery run {folder / RECIPE_FILE}"


def _ran(results: Results) -> str:
    seconds = sum(line["train_seconds"] for line in results.trained)
    longest = max(line["steps"] for line in results.trained)
    return (
        f"{len(results.trained)} networks of {longest:,} steps, {len(results.replicates())} replicates; "
        f"{seconds / 60:.1f} minutes of training in all."
    )


def is_lenet_on_mnist(recipe: WrittenRecipe) -> bool:
    """Whether it is the paper's first experiment, of any length."""
    data = recipe.section("data")
    return recipe.model == "lenet" and "mnist" in f"{data.get('name')} {data.get('path')}".lower()


def paper_comparison(results: Results) -> list[str]:
    """What Frankle & Carbin report for LeNet on MNIST, and what the run measured at the density that is nearest."""
    body = []
    for density, claim, measure in PAPER:
        nearest = min(results.rounds(), key=lambda round: abs(results.density(TICKET, round) - density))
        at = results.density(TICKET, nearest)
        measured = f"{measure(results, nearest)} (at {formatting.percent(at)})"
        if abs(at - density) > 0.15 * density:
            measured = "the run has no such density"
        body.append([formatting.percent(density), claim, measured])
    source = (
        "Beside the paper: Frankle & Carbin 2019 (arXiv 1803.03635 v5), 50,000 steps, 5 trials, all of MNIST. What is "
        "measured here is this run's, with its own budget and data."
    )
    return [source, page.markdown_table(["density", "the paper", "measured here"], body)]


def criteria_ranking(results: Results) -> list[str]:
    """Criteria that pruned the untrained network beside magnitude after training: a table, the best first."""
    last, key = max(results.rounds()), f"test_{results.metric}"
    steps = {line["steps"] for line in results.select(TICKET, 0)}.pop()
    dense, one_shot = results.values(key, TICKET, 0), results.values(key, "one_shot", last)
    chance = results.values(key, "random", last)
    labels = {
        (TICKET, 0): "dense",
        (TICKET, last): f"magnitude after training, {last} rounds",
        ("one_shot", last): "magnitude after training, one-shot",
        **{(name, last): f"{name} before training" for name in results.controls() if name in CRITERIA},
    }
    values = {arm: found for arm in labels if (found := results.values(key, *arm))}  # what has finished
    ranked = sorted(values, key=lambda arm: -estimate(values[arm].values()).mean)
    body = [
        [
            labels[arm],
            formatting.with_range(estimate(values[arm].values()), results.metric),
            _against(values[arm], chance, dense, results),
            _against(values[arm], one_shot, dense, results),
            _kept(results, *arm),
        ]
        for arm in ranked
    ]
    before = {arm[0]: values[arm] for arm in ranked if arm[0] in CRITERIA}
    above = _names(name for name, found in before.items() if paired_difference(found, chance).mean > 0)
    below = _names(name for name, found in before.items() if paired_difference(found, one_shot).mean < 0)
    others = _names(name for name, found in before.items() if paired_difference(found, one_shot).mean >= 0)
    density, metric = formatting.percent(results.density("random", last)), results.metric
    return [
        f"At initialisation each criterion prunes the untrained network to {density} of its weights in one go, its "
        "scores compared over the whole network; snip, grasp and wanda look at 8 batches of the training data, "
        "synflow at none and in 100 steps. Beside them magnitude after training, rewound to θ_0. All then train for "
        f"{steps:,} steps. Test {metric} at the end of training: mean over replicates (min–max); differences with "
        "their 95% interval over paired replicates; and the share of each layer that is kept, from input to output.",
        page.markdown_table(["pruned by", f"test {metric}", "− random", "− one-shot", "kept a layer"], body),
        "Frankle et al. 2021 (arXiv 2009.08576) find magnitude, snip, grasp and synflow at initialisation better "
        f"than random, and all below magnitude after training. Here, by the mean: above random {above}; below "
        f"magnitude after training in one go {below}; not below it {others}.",
    ]


def _against(values: dict[int, float], others: dict[int, float], dense: dict[int, float], results: Results) -> str:
    """The difference to others; a dash for the dense network, and for the others themselves."""
    if values in (dense, others):
        return formatting.NOTHING
    return formatting.with_interval(paired_difference(values, others), results.metric)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _kept(results: Results, control: str, round: int) -> str:
    """The share of every tensor that is kept, mean over the networks, in the tensors' order in the dense network."""
    lines, order = results.select(control, round), results.select(TICKET, 0)[0]["densities"]
    shares = [sum(line["densities"][name][0] / line["densities"][name][1] for line in lines) for name in order]
    return ", ".join(formatting.percent(share / len(lines)) for share in shares)


Measure = Callable[[Results, int], str]


def _speed(other: str) -> Measure:
    """By what share the ticket's early-stop step is before that of dense or a control, and how many times."""

    def measure(results: Results, round: int) -> str:
        ticket, theirs = _both(results, round, "early_stop_step", other)
        shared = ticket.keys() & theirs.keys()
        if not shared:
            return f"no {other.replace('_', ' ')} there"
        ours, their = (sum(values[r] for r in shared) / len(shared) for values in (ticket, theirs))
        change = f"{abs(1 - ours / their):.0%} {'earlier' if ours <= their else 'later'}"
        return f"{ours:,.0f} steps against {their:,.0f}: {change}, {their / ours:.2f}×"

    return measure


def _gain(key: str, other: str) -> Measure:
    """Mean difference of an accuracy over paired replicates, ticket − dense or a control, with its interval."""

    def measure(results: Results, round: int) -> str:
        found = paired_difference(*_both(results, round, key, other))
        return (
            formatting.with_interval(found, Metric("accuracy")) if found.n else f"no {other.replace('_', ' ')} there"
        )

    return measure


def _both(results: Results, round: int, key: str, other: str) -> tuple[dict[int, float], dict[int, float]]:
    against = (TICKET, 0) if other == "dense" else (other, round)
    return results.values(key, TICKET, round), results.values(key, *against)


PAPER = [
    (0.211, "early-stop 38% earlier than dense", _speed("dense")),
    (0.211, "early-stop 2.51× faster than random re-initialisation", _speed("random_reinit")),
    (0.211, "half a point above random re-initialisation", _gain("early_stop_test_accuracy", "random_reinit")),
    (0.135, "accuracy at early-stop more than 0.3 points above dense", _gain("early_stop_test_accuracy", "dense")),
    (0.036, "early-stop back at dense's", _speed("dense")),
    (0.036, "accuracy at early-stop back at dense's", _gain("early_stop_test_accuracy", "dense")),
]


if __name__ == "__main__":
    main()
