"""`hf-lottery instability`: the instability of a finished run's networks, at any rewind step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hf_lottery.experiment.instability import measure_instability
from hf_lottery.layout import (
    INSTABILITY_FOLDER,
    PLOTS_FOLDER,
    RECIPE_FILE,
    REPORT_FOLDER,
    Network,
    replicate_folder,
)
from hf_lottery.mask import Mask
from hf_lottery.recipe.recipe import load_written
from hf_lottery.report import plots, style
from hf_lottery.results import formatting
from hf_lottery.results.diverged import DivergedError
from hf_lottery.results.linear_path import POINTS, STABLE_BELOW, Instability
from hf_lottery.runner.build import build_trainer, load_data
from hf_lottery.runner.rewind_step import at_rewind_step
from hf_lottery.training.network_folder import NetworkFolder


def instability_of_run(
    output_dir: str | os.PathLike,
    number: int,
    rewind_step: int,
    seeds: Sequence[int] = (1, 2, 3),
    points: int = POINTS,
    console: Console | None = None,
    trust_metric_code: bool = False,
) -> list[Instability]:
    """Measure the instability of a round's ticket, once for each replicate that has finished the round.

    The mask is the round's (round 0: dense). θ_k is computed again: the replicate's own initialisation is trained
    densely for `rewind_step` steps. So k may differ from the run's. The trained copies are kept under
    `instability/round-NN-step-K/`, and the plot is written into `report/plots/`.

    Args:
        output_dir: a run's output folder.
        number: the round.
        rewind_step: k, in steps.
        seeds: of the data orders, one for each copy.
        points: how many values of α on a line.
        console: where the result is printed.
        trust_metric_code: whether metrics that are not in this package may be run.

    Raises:
        FileNotFoundError: the folder has no recipe.yaml.
        ValueError: no replicate has finished the round, all copies diverged, or k is not before the end of training.
    """
    root, console = Path(output_dir), console or Console()
    if not (root / RECIPE_FILE).is_file():
        raise FileNotFoundError(f"'{root}' has no {RECIPE_FILE}: give the output folder of a run")
    if rewind_step < 0:
        raise ValueError(f"rewind step is {rewind_step}; it must be a number of steps, 0 or more")
    recipe = at_rewind_step(load_written(root, [], trust_metric_code), rewind_step)
    masks = _masks(root, number, recipe.experiment.replicates, recipe.lottery_config().num_rounds)
    data = load_data(recipe)
    name = f"round-{number:02d}-step-{rewind_step}"
    found, failed = [], []
    for replicate, mask in masks.items():
        console.print(f"replicate {replicate}: {len(seeds)} copies from step {rewind_step}", highlight=False)
        folder = replicate_folder(root / INSTABILITY_FOLDER / name, replicate)
        trainer = build_trainer(recipe, data, recipe.training_arguments().seed + replicate, folder)
        try:
            found.append(
                measure_instability(trainer, folder, mask, seeds, points, data.metric, data.greater_is_better)
            )
        except DivergedError as error:
            failed.append(f"replicate {replicate}: {error}")
            console.print(failed[-1], highlight=False, markup=False)
    if not found:
        raise ValueError("; ".join(failed))
    paths = [path for each in found for path in each.paths]
    figure = plots.error_along_paths(paths)
    plot = style.save(figure, root / REPORT_FOLDER / PLOTS_FOLDER, f"instability-{name}")[0]
    left = f" ({len(failed)} of {len(masks)} replicates diverged and are left out)" if failed else ""
    mean = sum(path.instability for path in paths) / len(paths)
    stable = mean < STABLE_BELOW and not failed
    console.print(
        f"instability of round {number} ({formatting.percent(found[0].density)} density) at step {rewind_step}: "
        f"{mean:.2%}, mean of {len(paths)} pairs: {'stable' if stable else 'not stable'} "
        f"(stable is below {STABLE_BELOW:.0%}){left}\nplot     {plot}",
        highlight=False,
    )
    return found


def _masks(root: Path, number: int, replicates: int, num_rounds: int) -> dict[int, Mask]:
    """Replicate -> the mask of round `number`, of the replicates that have finished it."""

    def finished(round: int) -> dict[int, NetworkFolder]:
        folders = {replicate: NetworkFolder(Network(replicate, round).folder(root)) for replicate in range(replicates)}
        return {replicate: folder for replicate, folder in folders.items() if folder.finished}

    if folders := finished(number):
        return {replicate: folder.mask() for replicate, folder in folders.items()}
    rounds = [round for round in range(num_rounds + 1) if finished(round)]
    there = f"finished rounds are {', '.join(map(str, rounds))}" if rounds else "no round is; run the recipe first"
    raise ValueError(f"round {number} is not finished in '{root}': {there}")
