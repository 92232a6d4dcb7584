"""RewindCallback: captures θ_k, with the rest of the training's state, when Trainer reaches step k."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, safe_globals
from transformers.trainer_utils import has_length

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.processes import barrier, from_main, named_parameters, world_size
from hf_lottery.files import make_folder, naming, write_state
from hf_lottery.layout import MANIFEST_FILE, REWIND_FILE
from hf_lottery.random_state import get_rng_state
from hf_lottery.sealed import readable, require_whole_folder, seal_folder
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.replay import Replay

RNG_FILE = "rng.pt"


class RewindCallback(TrainerCallback):
    """Captures θ_k at step k of the first training, and restores it on request.

    With a plain Trainer it rewinds the weights alone: pass it in `callbacks`, train, then call `restore(model)`.
    `LotteryTrainer` adds one itself, and also replays optimizer, scheduler, random numbers and data order. (At k > 0
    the data loader has fetched some batches before step k. If fetching draws from the global generators, as a masking
    collator does, the replay has other batches there.)

    Args:
        rewind_step: k: a number of steps, or below 1 a share of the training steps.
        output_dir: where rewind.safetensors is written. None: kept in memory only.
        trainer: at k > 0, the trainer whose optimizer, scheduler and state are kept too (in `output_dir`).
        replay: how the trainer's next training starts. None: the callback has its own, and never replays.
    """

    def __init__(
        self,
        rewind_step: float = 0,
        output_dir: str | os.PathLike | None = None,
        trainer: Trainer | None = None,
        replay: Replay | None = None,
    ):
        self.config = LotteryConfig(rewind_step=rewind_step)
        self.folder = None if output_dir is None else Path(output_dir)
        self.trainer = trainer
        self.replay = Replay() if replay is None else replay
        self.point: RewindPoint | None = None
        self.passes = 0  # over the training data

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        step = self.config.resolve_rewind_step(state.max_steps)
        if step >= state.max_steps:
            raise ValueError(
                f"rewind_step is {step}, but training ends at step {state.max_steps}: choose an earlier one"
            )
        self.passes = 0
        if self.point is None and step == 0 and state.global_step == 0:
            self._capture(kwargs["model"], 0, args)
        if self.replay.retraining == "fine_tuning":
            self.replay.set_last_learning_rate(kwargs["optimizer"], kwargs["lr_scheduler"])

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.passes += 1

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        # At the start of step k + 1, not the end of step k: an evaluation after step k also draws random numbers.
        if self.point is None and state.global_step == self.config.resolve_rewind_step(state.max_steps):
            self._capture(kwargs["model"], state.global_step, args)
        if self.point is not None and state.global_step == self.point.step:
            if self.replay.sets_step_rng(self.point.step):
                self.replay.set_step_rng()
            elif self.replay.step_rng is None:
                self.replay.step_rng = get_rng_state()
                if self.folder is not None:
                    self._write(args, state)

    def restore(self, model: torch.nn.Module) -> None:
        """Copy θ_k back into `model`, in place.

        Raises:
            RuntimeError: step k has not been reached yet.
        """
        self.require_point().restore(model)

    def require_point(self) -> RewindPoint:
        """θ_k.

        Raises:
            RuntimeError: step k has not been reached yet.
        """
        if self.point is None:
            raise RuntimeError("there is no rewind point yet: train to the rewind step first")
        return self.point

    def load(self, args: TrainingArguments) -> bool:
        """Read the rewind point that an earlier process wrote to `output_dir`; False if there is none.

        Raises:
            DamagedFile: one of its files has changed since it was written.
            ValueError: it was written by another number of processes.
        """
        if self.folder is None or not from_main(lambda: (self.folder / MANIFEST_FILE).exists()):
            return False
        from_main(lambda: require_whole_folder(self.folder))
        written = from_main(lambda: len(list(self.folder.glob("rng*.pt"))))
        if written != max(args.world_size, 1):
            raise ValueError(
                f"{self.folder} was written by {written} process(es) and there are {args.world_size} now, "
                f"whose random numbers it does not hold: run with {written}, or set another output_dir"
            )
        self.point = RewindPoint.load(self.folder / REWIND_FILE)
        rng_file = _per_rank(self.folder / RNG_FILE, args)
        with readable(rng_file), safe_globals():
            states = torch.load(rng_file, weights_only=True)
            self.replay.start_rng, self.replay.step_rng = states["start"], states["step"]
        return True

    def _capture(self, model: torch.nn.Module, step: int, args: TrainingArguments) -> None:
        trainer = self.trainer
        if step > 0 and trainer is not None and self.passes > 1 and not has_length(trainer.train_dataset):
            raise ValueError(
                f"rewind_step {step} is in pass {self.passes} over a train_dataset without a length, whose order "
                "cannot be replayed from there: choose a step of the first pass"
            )
        self.point = RewindPoint.capture(model, step, keep=self.folder is None or args.should_save)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        """Write the state of training at step k. The manifest is last: `load` reads nothing without it."""
        make_folder(self.folder)
        rng_file = _per_rank(self.folder / RNG_FILE, args)
        write_state(rng_file, {"start": self.replay.start_rng, "step": self.replay.step_rng})
        if self.point.step > 0 and self.trainer is not None:
            with naming(self.folder, RuntimeError):  # torch.save's own error
                self.trainer._save_optimizer_and_scheduler(str(self.folder))
                self.trainer._save_scaler(str(self.folder))
                if args.should_save:
                    # the best model so far is the dense network: a sparse one must not load its weights at the end
                    blank = {"best_metric": None, "best_global_step": None, "best_model_checkpoint": None}
                    replace(state, **blank).save_to_json(str(self.folder / TRAINER_STATE_NAME))
        barrier()
        if args.should_save:
            self.point.save(self.folder / REWIND_FILE)
            seal_folder(self.folder, {"step": self.point.step})
        barrier()
        if world_size() > 1:  # one file, mapped into the memory of all, instead of a copy each
            self.point = RewindPoint.load(self.folder / REWIND_FILE)


def refuse_newly_trained(model: torch.nn.Module, point: RewindPoint) -> None:
    """Raise a ValueError for a model with a weight that is trained now but was frozen at step k, so is not in θ_k."""
    for name, parameter in named_parameters(model).items():
        if parameter.requires_grad and name not in point.tensors:
            raise ValueError(f"'{name}' was frozen at the rewind step and is trained now: it cannot be rewound")


def _per_rank(path: Path, args: TrainingArguments) -> Path:
    return path if args.world_size <= 1 else path.with_suffix(f".{args.process_index}{path.suffix}")
