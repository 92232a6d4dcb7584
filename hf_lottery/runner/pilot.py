"""How many replicates a run needs, from the noise that finished networks have shown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from hf_lottery.layout import LOTTERY_CONTROLS, TICKET
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.recipe.sections import rounds_with_both
from hf_lottery.results import formatting
from hf_lottery.results.finding import LEVEL
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.statistics import POWER, Estimate, paired_difference, replicates_to_decide

POINTS = (0.001, 0.002, 0.003, 0.005, 0.01)  # of a metric of which greater is better
SHARES = (0.005, 0.01, 0.02, 0.05)  # of the dense network's mean, of a loss or perplexity


def replicates_line(recipe: Recipe, folder: Path | None) -> str | None:
    """One line: how many replicates probably decide a difference of so much.

    The deviation of the paired differences is that of the pilot: the root mean square over its rounds, of the ticket
    against dense or against the controls, whichever is greater. The error rate is that of the first test of Holm's
    correction over the recipe's rounds with both controls (over all rounds if it has none), at each look.

    Args:
        recipe: what is planned.
        folder: the pilot's output folder. None: the recipe's own, and None is returned if it shows no noise yet.

    Raises:
        FileNotFoundError: `folder` has no results.
        ValueError: no two of its replicates have a dense network and a ticket.
    """
    own = Path(recipe.training["output_dir"])
    try:
        results = read_results(folder or own)
    except (FileNotFoundError, ValueError):
        if folder is None:
            return None
        raise
    deviation, count = _deviation(results)
    dense = results.values(f"test_{results.metric}", TICKET, 0)
    if not count or not dense:
        if folder is None:
            return None
        raise ValueError(
            f"'{folder}' shows no noise: a pilot has at least 2 replicates of a dense network and a ticket, such as a "
            "run with experiment.replicates=3 lottery.num_rounds=2"
        )
    tests = _tests(recipe)
    level = LEVEL / len(recipe.experiment.looks()) / tests
    metric, mean = results.metric, abs(sum(dense.values()) / len(dense))
    sizes = POINTS if metric.greater_is_better else [share * mean for share in SHARES]
    needed = {size: replicates_to_decide(size, deviation, level) for size in sizes}
    found = [f"{'over 1,000' if n is None else n} for {_size(size, results)}" for size, n in needed.items()]
    return (
        f"{', '.join(found)}, to be decided with a probability of {POWER:.0%}: a difference of test {metric} had a "
        f"deviation of {_size(deviation, results)} in {folder or own} (n = {count}), and {tests} "
        f"densit{'ies are' if tests > 1 else 'y is'} judged"
    )


def _size(size: float, results: Results) -> str:
    return formatting.difference(size, results.metric, signed=False)


def _deviation(results: Results) -> tuple[float, int]:
    """The deviation of paired differences, and the greatest number of pairs; (0, 0) if there are no two pairs."""
    key, rounds = f"test_{results.metric}", [number for number in results.rounds() if number > 0]
    resolution = results.resolution(key)

    def differences(control: str, fixed: int | None) -> Iterable[Estimate]:
        for number in rounds:
            theirs = results.values(key, control, number if fixed is None else fixed)
            yield paired_difference(results.values(key, TICKET, number), theirs, resolution=resolution)

    rivals = {TICKET: 0, **dict.fromkeys(LOTTERY_CONTROLS)}
    found = [[one for one in differences(*rival) if one.n >= 2] for rival in rivals.items()]
    variances = [sum(one.error**2 * one.n for one in group) / len(group) for group in found if group]
    return math.sqrt(max(variances, default=0.0)), max((one.n for group in found for one in group), default=0)


def _tests(recipe: Recipe) -> int:
    """At how many rounds the claim is tested: those with both controls, or all."""
    num_rounds = recipe.lottery_config().num_rounds
    return len(rounds_with_both(recipe.experiment.controls, num_rounds)) or max(num_rounds, 1)
