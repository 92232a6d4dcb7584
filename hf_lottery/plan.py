"""`hf-lottery run --plan`: how many networks, how long, how much disk, from a short calibration on this machine."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_lottery.assemble import build_trainer, load_data, make_experiment
from hf_lottery.recipe import Recipe
from hf_lottery.rewind import RewindPoint
from hf_lottery.trainer import LotteryTrainer

WARM_UP_STEPS, TIMED_STEPS = 10, 40


@dataclass(frozen=True)
class Plan:
    """What is left to do, and what it takes.

    Args:
        networks, finished: how many there are, and how many of them the output folder holds already.
        steps: optimizer steps of one network.
        evaluations: evaluations of one network.
        seconds_a_step, seconds_an_evaluation: measured just now, one worker.
        bytes_a_network: what a finished network leaves on disk, without the Trainer's own checkpoints.
        free_bytes: room left where the output folder is.
        memory: of a language model: its counts and the bytes that training it takes, counted.
    """

    networks: int
    finished: int
    steps: int
    evaluations: int
    seconds_a_step: float
    seconds_an_evaluation: float
    bytes_a_network: int
    free_bytes: int
    memory: str | None = None

    @property
    def seconds(self) -> float:
        """For what is left, with one worker."""
        of_one = self.steps * self.seconds_a_step + self.evaluations * self.seconds_an_evaluation
        return (self.networks - self.finished) * of_one

    @property
    def bytes(self) -> int:
        """For what is left."""
        return (self.networks - self.finished) * self.bytes_a_network

    def __str__(self) -> str:
        left = self.networks - self.finished
        return "\n".join(
            [
                f"networks  {self.networks}, of which {self.finished} are finished and {left} are left",
                f"each      {self.steps:,} steps at {1 / self.seconds_a_step:.3g} a second, "
                f"{self.evaluations:,} evaluations of {self.seconds_an_evaluation:.2g} s",
                f"time      {timedelta(seconds=round(self.seconds))} with one worker, by a calibration just now",
                f"disk      {self.bytes / 2**20:,.1f} MiB needed, {self.free_bytes / 2**20:,.0f} MiB free",
                *([f"memory    {self.memory}"] if self.memory else []),
            ]
        )


def make_plan(recipe: Recipe) -> Plan:
    """Train the dense network for a few steps, in a folder that is thrown away, and reckon the rest from it."""
    root = Path(recipe.training["output_dir"])
    experiment, data = make_experiment(recipe, root), load_data(recipe)
    short = {"max_steps": WARM_UP_STEPS + TIMED_STEPS, "eval_strategy": "no", "save_strategy": "no"}
    calibration = recipe.model_copy(
        update={
            "training": {**recipe.training, **short, "load_best_model_at_end": False},
            "lottery": {**recipe.lottery, "num_rounds": 0, "rewind_step": 0},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(calibration, data, experiment.seed, Path(folder))
        trainer.add_callback(clock := _Clock())
        trainer.train()
        started = time.perf_counter()
        trainer.evaluate()
        evaluation = time.perf_counter() - started
        trained = sum(value.nbytes for value in RewindPoint.capture(trainer.model).tensors.values())
    steps = _steps(recipe, trainer)
    there = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    return Plan(
        networks=len(experiment.units()),
        finished=len(experiment.units()) - len(experiment.pending()),
        steps=steps,
        evaluations=_evaluations(recipe, steps),
        seconds_a_step=clock.seconds_a_step,
        seconds_an_evaluation=evaluation,
        bytes_a_network=trained + (trainer.mask.numel() + 7) // 8,
        free_bytes=shutil.disk_usage(there).free,
        memory=_memory(recipe),
    )


def _memory(recipe: Recipe) -> str | None:
    if recipe.data.task != "causal_lm":
        return None
    from hf_lottery.memory import network_size

    return str(network_size(recipe))


class _Clock(TrainerCallback):
    """Times the steps after the first few, which pay for warming up."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARM_UP_STEPS:
            self._started = time.perf_counter()
        if state.global_step == WARM_UP_STEPS + TIMED_STEPS:
            self.seconds_a_step = (time.perf_counter() - self._started) / TIMED_STEPS


def _steps(recipe: Recipe, trainer: LotteryTrainer) -> int:
    arguments = recipe.training_arguments()
    if arguments.max_steps > 0:
        return arguments.max_steps
    updates = -(-len(trainer.get_train_dataloader()) // arguments.gradient_accumulation_steps)
    return math.ceil(updates * arguments.num_train_epochs)


def _evaluations(recipe: Recipe, steps: int) -> int:
    """While training, and at its end."""
    arguments = recipe.training_arguments()
    if arguments.eval_strategy == IntervalStrategy.STEPS:
        every = arguments.eval_steps if arguments.eval_steps >= 1 else math.ceil(arguments.eval_steps * steps)
        return math.ceil(steps / every)
    return math.ceil(arguments.num_train_epochs) if arguments.eval_strategy == IntervalStrategy.EPOCH else 1
