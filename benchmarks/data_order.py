"""Does a ticket gain from the data order that found its mask? Replayed and fresh data orders, under the same seeds.

    python benchmarks/data_order.py lenet --path ../shared/data/mnist --output-dir outputs/data-order-lenet
    python benchmarks/data_order.py conv-2 --path ../shared/data/cifar10 --output-dir outputs/data-order-conv-2

Two ordinary runs of one recipe, `data_order: replay` in OUTPUT-DIR/replay and `data_order: fresh` in OUTPUT-DIR/fresh.
Their dense networks are the same bit for bit, which is checked; each replicate's tickets are compared in pairs. The
table is printed and written to OUTPUT-DIR/data-order.md, with `--to docs/results.md` also into that page, and the
lines beside it. Stopped, the same command goes on where it was. `--only-table` trains nothing: it reads what is in
OUTPUT-DIR, or in the folder that `--to` has kept.

The budgets are a fraction of the papers': four prunings by half and 3,000 steps for LeNet-300-100, three by 55% and
400 steps for Conv-2, five replicates. 400 batches are half a pass over CIFAR-10: all rounds of a replay see that same
half, and each fresh round another one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from write_results import command, keep_source, replace_section

from hf_lottery.layout import TICKET
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.report import page
from hf_lottery.results import formatting
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.statistics import Estimate, paired_difference
from hf_lottery.runner.run import run
from hf_lottery.stopped import Stopped

ORDERS = ("replay", "fresh")


@dataclass(frozen=True)
class Plan:
    """A recipe, and its budget here."""

    recipe: str
    steps: int
    eval_steps: int
    rounds: int
    rates: dict[str, float]  # setting below lottery -> rate of a round
    data: dict[str, int]


PLANS = {
    "lenet": Plan("mnist/lenet-300-100", 3000, 300, 4, {"pruning_rate": 0.5, "pruning_rates.classifier": 0.25}, {}),
    "conv-2": Plan(
        "cifar10/conv-2",
        400,
        200,
        3,
        {"pruning_rate": 0.55, "pruning_rates.conv": 0.31, "pruning_rates.classifier": 0.31},
        {"validation_size": 2000, "test_size": 5000},
    ),
}


def main() -> None:
    """Parse the command line, train what is left, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=PLANS)
    parser.add_argument("--path", help="folder of the data; unset: from the Hub")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of every training; unset: the plan's")
    parser.add_argument("--rounds", type=int, help="prunings; unset: the plan's")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="more settings of both runs")
    parser.add_argument("--only-table", action="store_true", help="train nothing; read what is there")
    parser.add_argument("--to", type=Path, help="also write the section into this page, and keep the lines beside it")
    arguments = parser.parse_args()
    try:
        measure(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped.number)


def measure(arguments: argparse.Namespace) -> None:
    """Both runs, as far as they are not finished, and the table."""
    if not arguments.only_table:
        for order in ORDERS:
            run(load_recipe(PLANS[arguments.network].recipe, overrides(arguments, order)), Console())
    name = f"data-order-{arguments.network}"
    text = section(name, arguments.output_dir)
    (arguments.output_dir / "data-order.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if arguments.to is not None:
        replace_section(arguments.to, name, text)
        for order in ORDERS:
            keep_source(arguments.output_dir / order, arguments.to.with_suffix("") / name / order)


def overrides(arguments: argparse.Namespace, order: str) -> list[str]:
    """The settings of one of the two runs, for `load_recipe`."""
    plan = PLANS[arguments.network]
    steps = arguments.steps or plan.steps
    settings = {
        **({"data.path": arguments.path} if arguments.path else {}),
        **{f"data.{name}": value for name, value in plan.data.items()},
        "training.max_steps": steps,
        "training.eval_steps": min(plan.eval_steps, steps),
        "training.output_dir": str(arguments.output_dir / order),
        **{f"lottery.{name}": rate for name, rate in plan.rates.items()},
        "lottery.num_rounds": arguments.rounds or plan.rounds,
        "lottery.data_order": order,
        "experiment.replicates": arguments.replicates,
        "experiment.controls": "[]",
    }
    return [f"{key}={value}" for key, value in settings.items()] + arguments.set


def section(name: str, folder: Path) -> str:
    """The section of both runs in Markdown: the answer, the commands, a row for each density and one for all.

    Raises:
        FileNotFoundError: a run has no results.
        ValueError: the two dense networks of a replicate differ, so that the runs are no pair.
    """
    replay, fresh = (read_results(folder / order) for order in ORDERS)
    require_pairs(replay, fresh)
    metric = replay.metric
    rounds = [number for number in replay.rounds() if number > 0 and number in fresh.rounds()]
    body = [row(replay, fresh, [number], formatting.percent(replay.density(TICKET, number))) for number in rounds]
    if len(rounds) > 1:
        body.append(row(replay, fresh, rounds, "mean of all"))
    overall = paired_difference(mean_over(replay, rounds), mean_over(fresh, rounds))
    columns = ["density", "replay", "fresh", "replay − fresh", "n", "replay − dense", "fresh − dense"]
    return "\n\n".join(
        [
            f"## {name}",
            f"**{answer(overall, replay)}**",
            *(f"```\n{command(folder / order)}\n```" for order in ORDERS),
            f"Test {metric} at the end of training, mean over replicates. In `replay` every round has the data order "
            "of the dense network, which found the mask; in `fresh` each round has an order of its own. Differences "
            "are means over paired replicates with their 95% Student-t interval, not corrected for the number of "
            "densities; the last row is the mean over all densities, one value for each replicate.",
            page.markdown_table(columns, body),
        ]
    )


def require_pairs(replay: Results, fresh: Results) -> None:
    """Raise a ValueError if a replicate's dense network is not the same in both runs."""
    one, two = (results.values("eval_loss", TICKET, 0) for results in (replay, fresh))
    for replicate in one.keys() & two.keys():
        if one[replicate] != two[replicate]:
            raise ValueError(
                f"the dense networks of replicate {replicate} differ (validation loss {one[replicate]} and "
                f"{two[replicate]}): run both on one machine, with the same settings and versions"
            )


def row(replay: Results, fresh: Results, rounds: list[int], label: str) -> list[str]:
    """One row of the table, over one round or the mean of several."""
    a, b = mean_over(replay, rounds), mean_over(fresh, rounds)
    found = paired_difference(a, b)
    metric = replay.metric
    return [
        label,
        *(
            formatting.value(sum(values.values()) / len(values) if values else float("nan"), metric)
            for values in (a, b)
        ),
        formatting.with_interval(found, metric),
        str(found.n),
        *(formatting.with_interval(paired_difference(values, mean_over(replay, [0])), metric) for values in (a, b)),
    ]


def mean_over(results: Results, rounds: list[int]) -> dict[int, float]:
    """Replicate -> mean of the test metric over the tickets of these rounds; only replicates that have them all."""
    found = [results.values(f"test_{results.metric}", TICKET, number) for number in rounds]
    shared = set.intersection(*map(set, found)) if found else set()
    return {replicate: sum(values[replicate] for values in found) / len(found) for replicate in sorted(shared)}


def answer(overall: Estimate, results: Results) -> str:
    """A sentence: what the mean over all densities shows."""
    if overall.n < 2:
        return f"One pair says nothing: {overall.n} of at least 2 replicates have finished."
    shown = f"{formatting.with_interval(overall, results.metric)}, n = {overall.n}"
    if overall.low > 0 or overall.high < 0:
        better = (overall.mean > 0) == results.metric.greater_is_better
        verb = "flatters" if better else "holds back"
        return f"The data order that found the mask {verb} tickets: replay − fresh is {shown}, mean of all densities."
    return (
        f"Not shown that replaying the data order flatters tickets: replay − fresh is {shown}, mean of all densities."
    )


if __name__ == "__main__":
    main()
