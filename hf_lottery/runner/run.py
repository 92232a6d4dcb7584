"""`hf-lottery run`: a recipe -> an experiment, run to its end, with its table, plots and ticket."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

from hf_lottery.distributed.processes import from_main, is_main, require_shared_folder
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.folder_lock import FolderLock
from hf_lottery.layout import HOLDER_FILE, LOCK_FILE, RECIPE_FILE
from hf_lottery.recipe.recipe import Recipe, differences, load_written
from hf_lottery.runner.build import make_experiment
from hf_lottery.runner.command import keep_command, write_command
from hf_lottery.runner.conclude import conclude
from hf_lottery.runner.launch import meet
from hf_lottery.runner.looks import grow
from hf_lottery.runner.progress import NetworkProgress, StepCallback
from hf_lottery.runner.rewind_step import settle_rewind_step
from hf_lottery.sealed import DamagedFile, write_sealed_text
from hf_lottery.training.stopping import Stopping

_log = logging.getLogger(__name__)


def run(recipe: Recipe, console: Console | None = None) -> Path:
    """Train all networks of a recipe that its output folder does not hold yet; then print the results.

    Returns:
        The output folder.

    Raises:
        ValueError: the folder belongs to another recipe, or the ranks of a launcher do not fit together.
        Stopped: SIGTERM or Ctrl-C has come. What was trained is in a checkpoint.
    """
    meet(recipe)
    console = console or Console(quiet=not is_main())
    progress, stopping = NetworkProgress(console), Stopping()
    with stopping.on_signals():
        recipe, experiment = open_run(recipe, progress, stopping)
        while True:
            with progress.over(experiment):
                experiment.run(
                    on_start=progress.start, on_wait=progress.wait, on_diverged=progress.diverged, stopping=stopping
                )
            before = experiment.replicates
            if grow(recipe, experiment):
                more = experiment.replicates - before
                console.print(f"undecided after {before} replicates: {more} more", highlight=False)
                continue
            try:
                conclude(recipe, experiment, console)
                return experiment.root
            except DamagedFile as damage:  # of a network that was finished, and nothing has read it before
                experiment.recompute(damage)


def open_run(
    recipe: Recipe, progress: NetworkProgress | None = None, stopping: Stopping | None = None
) -> tuple[Recipe, Experiment]:
    """The recipe with its rewind step as a number, and its experiment in an output folder that is claimed for it.

    Args:
        recipe: as it was read.
        progress: shows the steps of the network that is trained.
        stopping: ends its training after a signal.

    Raises:
        ValueError: the output folder belongs to another recipe, or not every rank sees it.
    """
    root = from_main(lambda: claim_output_folder(recipe))
    require_shared_folder(root)
    steps = None if progress is None else StepCallback(progress)
    recipe = settle_rewind_step(recipe, root, [*filter(None, [stopping])])
    return recipe, make_experiment(recipe, root, [*filter(None, [steps, stopping])])


def claim_output_folder(recipe: Recipe) -> Path:
    """Write recipe.yaml and command into a new output folder; refuse one that holds results of another recipe.

    Raises:
        ValueError: it holds such results; the message names the first setting that differs.
    """
    root = Path(recipe.training["output_dir"])
    written = root / RECIPE_FILE
    started = any(
        path.is_file() and path.name not in (LOCK_FILE, HOLDER_FILE) for path in root.glob("replicate-*/**/*")
    )
    if written.exists():
        changed = _changed(root, recipe, started)
        if not changed:
            keep_command(root, recipe.command())
            return root
        if (holder := _in_use(root)) is not None:
            raise ValueError(
                f"{root} is in use by {holder} with another recipe: set training.output_dir to another folder"
            )
        if started:
            key, (old, new) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ValueError(
                f"{root} holds results of another recipe: {key} was {old!r} and is now {new!r}{more}. "
                "Set training.output_dir to another folder, or go back to the recipe that it was made with."
            )
    elif started:
        _log.warning("%s is missing. What is in %s is taken as results of this recipe.", written, root)
    write_command(root, recipe.command())
    write_sealed_text(written, recipe.to_yaml())
    return root


def _in_use(root: Path) -> str | None:
    """Which process trains a network in the output folder now; None: nobody does."""
    for path in root.glob(f"replicate-*/**/{LOCK_FILE}"):
        lock = FolderLock(path.parent)
        if not lock.take():
            return lock.holder()
        lock.release()
    return None


def _changed(root: Path, recipe: Recipe, started: bool) -> dict:
    """The settings in which a recipe differs from the folder's own.

    Raises:
        ValueError: recipe.yaml is damaged, so that nobody knows what the results in the folder are of.
    """
    try:
        return differences(load_written(root, trust_metric_code=True), recipe)  # compared, not run
    except DamagedFile as damage:
        if not started:
            return {RECIPE_FILE: (None, None)}
        raise ValueError(
            f"{damage}. If the results in {root} are of the recipe that you gave, remove this file and run again"
        ) from None
