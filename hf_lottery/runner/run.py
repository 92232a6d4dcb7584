"""`hf-lottery run`: a recipe -> an experiment, run to its end, with its table, plots and ticket."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hf_lottery.distributed.processes import from_main, is_main, require_shared_folder
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.files import write_text
from hf_lottery.layout import COMMAND_FILE, LOCK_FILE, RECIPE_FILE
from hf_lottery.recipe.recipe import Recipe, differences, load_recipe
from hf_lottery.runner.build import make_experiment
from hf_lottery.runner.conclude import conclude
from hf_lottery.runner.launch import meet
from hf_lottery.runner.progress import NetworkProgress
from hf_lottery.runner.rewind_step import settle_rewind_step


def run(recipe: Recipe, console: Console | None = None) -> Path:
    """Train all networks of a recipe that its output folder does not hold yet; then print the results.

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


def open_run(recipe: Recipe, progress: NetworkProgress | None = None) -> tuple[Recipe, Experiment]:
    """The recipe with its rewind step as a number, and its experiment in an output folder that is claimed for it.

    Args:
        recipe: as it was read.
        progress: shows the steps of the network that is trained.

    Raises:
        ValueError: the output folder belongs to another recipe, or not every rank sees it.
    """
    root = from_main(lambda: claim_output_folder(recipe))
    require_shared_folder(root)
    recipe = settle_rewind_step(recipe, root)
    return recipe, make_experiment(recipe, root, progress)


def claim_output_folder(recipe: Recipe) -> Path:
    """Write recipe.yaml and command into a new output folder; refuse one that holds results of another recipe.

    Raises:
        ValueError: it holds such results; the message names the first setting that differs.
    """
    root = Path(recipe.training["output_dir"])
    written = root / RECIPE_FILE
    if written.is_file():
        # compared, not run
        changed = differences(load_recipe(str(written), trust_metric_code=True), recipe)
        if not changed:
            return root
        if any(path.is_file() and path.name != LOCK_FILE for path in root.glob("replicate-*/**/*")):
            key, (old, new) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ValueError(
                f"{root} holds results of another recipe: {key} was {old!r} and is now {new!r}{more}. "
                "Set training.output_dir to another folder, or go back to the recipe that it was made with."
            )
    write_text(root / COMMAND_FILE, recipe.command() + "\n")
    write_text(written, recipe.to_yaml())
    return root
