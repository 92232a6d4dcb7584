"""`hf-lottery run`: a recipe -> an experiment, run to its end, with its table, plots and ticket."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hf_lottery.distributed.processes import is_main
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.conclude import conclude
from hf_lottery.runner.launch import meet
from hf_lottery.runner.opening import open_run
from hf_lottery.runner.progress import NetworkProgress


def run(recipe: Recipe, console: Console | None = None) -> Path:
    """Train all networks of a recipe that its output folder does not hold yet; then print what they show.

    Returns:
        The output folder.

    Raises:
        ValueError: the folder belongs to another recipe, or the ranks of a launcher do not fit together.
    """
    meet(recipe)
    console = console or Console(quiet=not is_main())
    progress = NetworkProgress(console)
    recipe, experiment = open_run(recipe, progress)
    with progress.over(experiment):
        experiment.run(on_start=progress.start)
    conclude(recipe, experiment, console)
    return experiment.root
