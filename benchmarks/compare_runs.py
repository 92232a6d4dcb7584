"""Put several runs' networks into one table of docs/results.md, from the runs' own results.jsonl.

    python benchmarks/compare_runs.py smollm2-updates outputs/smollm2-lota-10 outputs/smollm2-lora-r184

A row for what each run trained (dense, each ticket, each control), with the weights that were free to train and the
means over replicates.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from write_results import command, keep_source, replace_section

from hf_lottery.layout import TICKET
from hf_lottery.report import page
from hf_lottery.results import formatting
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results, read_results


def main() -> None:
    """Parse the command line and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="the section's")
    parser.add_argument("output_dirs", nargs="+", type=Path, help="output folders of runs")
    parser.add_argument("--to", type=Path, default=Path("docs/results.md"), help="the page")
    arguments = parser.parse_args()
    write_comparison(arguments.name, arguments.output_dirs, arguments.to)
    print(arguments.to)


def write_comparison(name: str, output_dirs: list[Path], to: Path) -> None:
    """Write the section `name` of the page `to`.

    Args:
        name: the section's name.
        output_dirs: runs' output folders.
        to: the Markdown file.

    Raises:
        FileNotFoundError: a folder has no results.jsonl.
        ValueError: the runs do not measure the same thing.
    """
    runs = {folder.resolve().name: read_results(folder) for folder in output_dirs}
    metrics = {results.metric for results in runs.values()}
    if len(metrics) > 1:
        raise ValueError(f"the runs measure {' and '.join(sorted(map(str, metrics)))}: compare runs of one task")
    metric = metrics.pop()
    columns = ["run", "network", "density", "weights trained", "steps", "test loss", f"test {metric}"]
    body = [row for run, results in runs.items() for row in _rows(run, results, metric)]
    parts = [
        f"## {name}",
        *(f"```\n{command(folder)}\n```" for folder in output_dirs),
        page.markdown_table(columns, body),
    ]
    replace_section(to, name, "\n\n".join(parts))
    for folder in output_dirs:
        keep_source(folder, to.with_suffix("") / folder.resolve().name)


def _rows(run: str, results: Results, metric: Metric) -> Iterable[list[str]]:
    for control in [TICKET, *results.controls()]:
        for round in results.rounds(control):
            lines = results.select(control, round)
            what = "dense" if (control, round) == (TICKET, 0) else f"{control.replace('_', ' ')}, round {round}"
            yield [
                run,
                what,
                formatting.percent(results.density(control, round)),
                f"{lines[0]['kept']:,}",
                f"{lines[0]['steps']:,}",
                *(
                    formatting.value(_mean(results.values(f"test_{key}", control, round)), key)
                    for key in (Metric("loss", greater_is_better=False), metric)
                ),
            ]


def _mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values)


if __name__ == "__main__":
    main()
