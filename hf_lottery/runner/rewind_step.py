"""`lottery.rewind_step: auto`: the earliest step of a list from which the dense network trains stably."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from transformers import TrainerCallback

from hf_lottery.config import AUTO
from hf_lottery.distributed.processes import world_size
from hf_lottery.experiment.instability import measure_instability
from hf_lottery.layout import REWIND_STEP_FILE, REWIND_STEP_FOLDER
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.results.diverged import DivergedError
from hf_lottery.results.linear_path import STABLE_BELOW, earliest_stable_step
from hf_lottery.runner.build import build_trainer, load_data
from hf_lottery.sealed import DamagedFile, read_sealed, write_sealed

_log = logging.getLogger(__name__)

SEEDS = (1, 2)


def settle_rewind_step(recipe: Recipe, root: Path, callbacks: Sequence[TrainerCallback] = ()) -> Recipe:
    """The recipe with its rewind step as a number, which is measured once for an output folder and written there.

    From each step k of the list two copies of the first replicate's dense network are trained under different data
    orders; k is stable when the error barrier on the line between them is below 2%. Where one diverges, it is not.

    Args:
        recipe: returned unchanged unless its rewind step is auto.
        root: the output folder.
        callbacks: of the trainers.

    Raises:
        ValueError: no step of the list is stable.

    Source: Frankle et al. 2020 (arXiv 1912.05671), section 3.
    """
    if recipe.lottery_config().rewind_step != AUTO:
        return recipe
    decision = root / REWIND_STEP_FILE
    if world_size() > 1 and not decision.is_file():
        raise ValueError("rewind_step auto is measured by one process: run the recipe once without a launcher first")
    with FileLock(root / ".rewind-step.lock"):
        chosen = _chosen(decision)
        if chosen is None:
            chosen = _measure(recipe, root, callbacks)
            write_sealed(decision, chosen)
    return at_rewind_step(recipe, chosen["rewind_step"])


def _chosen(decision: Path) -> dict | None:
    """What was measured before; None if nothing was, or the file is damaged."""
    try:
        return read_sealed(decision)
    except FileNotFoundError:
        return None
    except DamagedFile as damage:
        _log.warning("%s. The rewind step is measured again.", damage)
        return None


def _measure(recipe: Recipe, root: Path, callbacks: Sequence[TrainerCallback]) -> dict:
    data, found, said = load_data(recipe), {}, []
    seed = recipe.training_arguments().seed

    def instability_at(step: int) -> float:
        folder = root / REWIND_STEP_FOLDER / f"step-{step}"
        trainer = build_trainer(at_rewind_step(recipe, step), data, seed, folder, callbacks)
        try:
            measured = measure_instability(
                trainer, folder, None, SEEDS, metric=data.metric, greater_is_better=data.greater_is_better
            )
        except DivergedError as error:
            said.append(f"at step {step} {error}")
            found[step] = None  # infinite, which JSON cannot say
            return math.inf
        found[step] = measured.paths[0].instability
        said.append(f"{found[step]:.1%} at step {step}")
        return found[step]

    step = earliest_stable_step(recipe.lottery_config().rewind_steps, instability_at)
    if step is None:
        raise ValueError(
            f"lottery.rewind_steps: the dense network is not stable at any of them ({', '.join(said)}; stable is "
            f"below {STABLE_BELOW:.0%}): add later steps"
        )
    return {"rewind_step": step, "instability": found}


def at_rewind_step(recipe: Recipe, step: int) -> Recipe:
    """The recipe with this rewind step."""
    return recipe.model_copy(update={"lottery": {**recipe.lottery, "rewind_step": step, "rewind_steps": []}})
