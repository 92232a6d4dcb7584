"""`hf-lottery run --plan`: how many networks, how much time, disk and memory.

The time is from a short calibration on this machine; for a language model that cannot be trained here, an estimate.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_lottery.experiment.experiment import Experiment
from hf_lottery.pruning.coverage import Coverage
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.build import build_trainer, load_data, make_experiment
from hf_lottery.runner.memory import GIB, Size, memory_of_this_machine, network_size
from hf_lottery.runner.pilot import replicates_line
from hf_lottery.runner.speed import Speed, estimate_speed
from hf_lottery.task_records import TASKS
from hf_lottery.tasks.instruction_rows import load_rows
from hf_lottery.tasks.language_models import has_weights
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.other_text import loss_on

WARM_UP_STEPS, TIMED_STEPS = 10, 40
LONGEST_CALIBRATION = timedelta(minutes=10)


@dataclass(frozen=True)
class Plan:
    """What is left to do, and what it takes.

    Args:
        networks, finished: how many the recipe plans, and how many of them the output folder holds already.
        steps: optimizer steps of one network; None: not known, as the data are not here.
        evaluations: evaluations of one network; None if they depend on steps that are not known.
        seconds_a_step, seconds_an_evaluation: of one worker.
        bytes_a_network: on disk for a finished network, without the Trainer's own checkpoints.
        free_bytes: on the disk of the output folder.
        source: how the seconds were found.
        seconds_on_other_text: of one measurement of forgetting; 0 where it is not measured.
        others: how many measurements of it are left: one a network, and one more a dense network.
        memory: for a language model, its counts and the bytes that training it takes.
        coverage: what the mask is over, and what it leaves out.
        decided: how many replicates decide which difference, where finished networks have shown their noise.
    """

    networks: int
    finished: int
    steps: int | None
    evaluations: int | None
    seconds_a_step: float
    seconds_an_evaluation: float
    bytes_a_network: int
    free_bytes: int
    source: str = "by a calibration just now"
    seconds_on_other_text: float = 0.0
    others: int = 0
    memory: str | None = None
    coverage: Coverage | None = None
    decided: str | None = None

    @property
    def seconds(self) -> float | None:
        """To train what is left, with one worker; None: not known."""
        if self.steps is None:
            return None
        of_one = self.steps * self.seconds_a_step + self.evaluations * self.seconds_an_evaluation
        return (self.networks - self.finished) * of_one + self.others * self.seconds_on_other_text

    @property
    def bytes(self) -> int:
        """On disk for what is left."""
        return (self.networks - self.finished) * self.bytes_a_network

    def __str__(self) -> str:
        left = self.networks - self.finished
        steps = "an unknown number of steps" if self.steps is None else f"{self.steps:,} steps"
        evaluations = "evaluations" if self.evaluations is None else f"{self.evaluations:,} evaluations"
        slow = self.seconds_a_step > 1
        pace = f"of {_seconds(self.seconds_a_step)}" if slow else f"at {1 / self.seconds_a_step:.3g} a second"
        if self.seconds is None:
            thousand = timedelta(seconds=round(1000 * self.seconds_a_step))
            time = f"{thousand} for 1,000 steps of one network"
        else:
            time = f"{timedelta(seconds=round(self.seconds))} with one worker"
        other = f", forgetting in {_seconds(self.seconds_on_other_text)}" if self.seconds_on_other_text else ""
        return "\n".join(
            [
                f"networks  {self.networks}, of which {self.finished} are finished and {left} are left",
                f"each      {steps} {pace}, {evaluations} of {_seconds(self.seconds_an_evaluation)}{other}",
                f"time      {time}, {self.source}",
                f"disk      {self.bytes / 2**20:,.1f} MiB needed, {self.free_bytes / 2**20:,.0f} MiB free",
                *([f"memory    {self.memory}"] if self.memory else []),
                *([f"mask      {str(self.coverage).removeprefix('the mask is ')}"] if self.coverage else []),
                *([f"decided   by {self.decided}"] if self.decided else []),
            ]
        )


def make_plan(recipe: Recipe, pilot: Path | None = None) -> Plan:
    """Count what is left, and time a step of the dense network; if it cannot be trained here, estimate the time.

    Args:
        recipe: what is planned.
        pilot: an output folder for `replicates_line`; None: the recipe's own.
    """
    decided = replicates_line(recipe, pilot)  # first: it is quick, and may refuse
    return replace(_plan(recipe), decided=decided)


def _plan(recipe: Recipe) -> Plan:
    if not TASKS[recipe.data.task].language_model:
        return _calibrated(recipe, None)
    size = network_size(recipe)
    speed = estimate_speed(recipe)
    calibration = timedelta(seconds=round(speed.step * (WARM_UP_STEPS + TIMED_STEPS)))
    if size.total > (memory := memory_of_this_machine(recipe)):
        why = f"it does not fit the {memory / GIB:.1f} GiB here"
    elif not has_weights(recipe.model):
        why = "its weights are not on this machine"
    elif calibration > LONGEST_CALIBRATION:
        why = f"a calibration would take {calibration}"
    else:
        return _calibrated(recipe, str(size))
    return _estimated(recipe, size, speed, why)


def _calibrated(recipe: Recipe, memory: str | None) -> Plan:
    """Train the dense network for a few steps, in a temporary folder, and calculate the plan from that."""
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
        started = time.perf_counter()
        if data.other_text is not None:
            loss_on(trainer.model, data.other_text)
        on_other_text = time.perf_counter() - started if data.other_text is not None else 0.0
        trained = sum(value.nbytes for value in RewindPoint.capture(trainer.model).tensors.values())
    steps = _steps(recipe, len(trainer.get_train_dataloader()))
    return Plan(
        **_counts(experiment),
        steps=steps,
        evaluations=_evaluations(recipe, steps),
        seconds_a_step=clock.seconds_a_step,
        seconds_an_evaluation=evaluation,
        seconds_on_other_text=on_other_text,
        bytes_a_network=trained + (trainer.mask.numel() + 7) // 8,
        memory=memory,
        coverage=trainer.coverage,
    )


def _estimated(recipe: Recipe, size: Size, speed: Speed, why: str) -> Plan:
    """The plan of a language model that is not trained here. It reads no weights and no tokenizer.

    All rows of the data are counted, also those without an answer, and before packing.
    """
    arguments = recipe.training_arguments()
    rows, unknown = None, ""
    try:
        rows = {name: len(part) for name, part in load_rows(recipe.data).items()}
    except ValueError as error:
        if recipe.data.path is not None:
            raise
        unknown = f"; how many steps an epoch has is not known: {error}" if arguments.max_steps <= 0 else ""
    steps = _steps(recipe, None if rows is None else -(-rows["train"] // arguments.train_batch_size))
    rows = rows or {"validation": recipe.data.validation_size, "test": recipe.data.test_size}
    measured_on = (rows["validation"] + rows["test"]) * recipe.data.max_length
    return Plan(
        **_counts(make_experiment(recipe, Path(recipe.training["output_dir"]))),
        steps=steps,
        evaluations=_evaluations(recipe, steps),
        seconds_a_step=speed.step,
        seconds_an_evaluation=measured_on * speed.forward,
        seconds_on_other_text=0.0 if recipe.data.other_text is None else recipe.data.other_text.tokens * speed.forward,
        bytes_a_network=size.gradients + (size.prunable + 7) // 8,
        source=f"{speed}; {why}{unknown}",
        memory=str(size),
        coverage=size.coverage,
    )


def _counts(experiment: Experiment) -> dict[str, int]:
    there = next(path for path in (experiment.root, *experiment.root.absolute().parents) if path.is_dir())
    gone, pending = experiment.left_out(), experiment.pending()  # gone: they stand on a network that diverged
    networks = [network for network in experiment.networks() if network not in gone]
    dense = [network for network in pending if network.round == 0]
    return {
        "networks": len(networks),
        "finished": len(networks) - len(pending),
        "others": len(pending) + len(dense),
        "free_bytes": shutil.disk_usage(there).free,
    }


class _Clock(TrainerCallback):
    """Times the steps after the first few, which are slower."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARM_UP_STEPS:
            self._started = time.perf_counter()
        if state.global_step == WARM_UP_STEPS + TIMED_STEPS:
            self.seconds_a_step = (time.perf_counter() - self._started) / TIMED_STEPS


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _steps(recipe: Recipe, batches: int | None) -> int | None:
    """Steps of one network whose epoch has `batches` batches; None: not known."""
    arguments = recipe.training_arguments()
    if arguments.max_steps > 0:
        return arguments.max_steps
    if batches is None:
        return None
    return math.ceil(-(-batches // arguments.gradient_accumulation_steps) * arguments.num_train_epochs)


def _evaluations(recipe: Recipe, steps: int | None) -> int | None:
    """Evaluations during and at the end of one training of `steps` steps; None: not known."""
    arguments = recipe.training_arguments()
    if arguments.eval_strategy == IntervalStrategy.STEPS:
        if steps is None:
            return None
        every = arguments.eval_steps if arguments.eval_steps >= 1 else math.ceil(arguments.eval_steps * steps)
        return math.ceil(steps / every)
    return math.ceil(arguments.num_train_epochs) if arguments.eval_strategy == IntervalStrategy.EPOCH else 1
