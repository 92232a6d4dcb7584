"""Checkpoints: whole or passed over, and what of a training Trainer's own checkpoints leave out."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from hf_lottery.distributed.processes import from_main, gathered
from hf_lottery.files import remove_folder
from hf_lottery.layout import MANIFEST_FILE
from hf_lottery.mask import MASK_FILE
from hf_lottery.sealed import DamagedFile, require_whole_folder, seal_folder
from hf_lottery.training.replay import Order

_log = logging.getLogger(__name__)


class Checkpoints(TrainerCallback):
    """Seals each checkpoint of a training, and continues from one as if the training had not been interrupted.

    A checkpoint is sealed by its manifest, with sizes and checksums of all its files. The manifest also has what
    Trainer forgets: the losses so far, the seeds of a training with random numbers of its own, whether the epoch's end
    (with its evaluation) was reached, and how many seconds training has taken; what is logged at the end is of the
    whole training.

    Not restored, in a record of an epoch's end that was not reached before: its `grad_norm` and `learning_rate`.

    Args:
        trainer: whose checkpoints they are.

    Attributes:
        ends_where_it_stopped: if a callback stopped training where the checkpoint was written, training has ended
            there. False: Trainer's own rule, which is to train on.
        writers: each writes what else belongs in a checkpoint into its folder, before it is sealed. For rank 0 alone.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.ends_where_it_stopped = False
        self.writers: list[Callable[[Path], None]] = []
        self._facts: dict[str, Any] | None = None  # of the checkpoint that this training continues from
        self._path: str | None = None
        self._epoch_ended = False
        self._began, self._first_step = 0.0, 0
        self._epoch, self._batches = 0, 0  # which pass over the data, and how many batches of it were trained on
        self._has_trained = False  # on a batch, since this training began or continued

    def choose(self, checkpoint: str | os.PathLike | bool | None) -> str | bool | None:
        """Which checkpoint the next training continues from.

        Args:
            checkpoint: None: it starts without one; True: from the last whole one in `output_dir`.

        Returns:
            Its path; True if there is none of ours, so that Trainer looks for one.

        Raises:
            DamagedFile: the checkpoint named is not whole.
        """
        self._path, self._facts = None, None
        if checkpoint is None:
            return None
        if checkpoint is True:
            self._path, self._facts = from_main(lambda: last_checkpoint(self.trainer.args.output_dir)) or (None, None)
            return self._path or True
        self._path = os.fspath(checkpoint)
        if not from_main(lambda: checkpoint_of_trainer(self._path)):
            self._facts = from_main(lambda: require_whole_folder(self._path))
        return self._path

    @property
    def source(self) -> Path | None:
        """The checkpoint that this training continues from."""
        return None if self._path is None else Path(self._path)

    @property
    def order(self) -> Order | None:
        """The seeds that the training of the checkpoint was begun with; None: the random numbers of the first one."""
        written = (self._facts or {}).get("order")
        return None if written is None else Order(**written)

    @property
    def seconds_before(self) -> float:
        """How long this training has taken in the processes before this one."""
        return (self._facts or {}).get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """How long this training has taken, in all processes that worked on it one after the other."""
        return self.seconds_before + time.monotonic() - self._began

    def seal(self, folder: Path) -> None:
        """Complete a checkpoint that Trainer has just written. All ranks must call this."""
        trainer = self.trainer
        losses = gathered(float(trainer._tr_loss))  # also waits for the files of all ranks
        if not trainer.args.should_save:
            return
        if not (folder / MASK_FILE).is_file():  # Trainer._save is not called for weights that are saved as shards
            trainer.mask.save(folder / MASK_FILE)
        for write in self.writers:
            write(folder)
        best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        facts = {
            "step": trainer.state.global_step,
            "max_steps": trainer.state.max_steps,
            "epoch_ended": self._epoch_ended,
            "epoch": self._epoch,
            "batches": self._batches,
            "stopped": trainer.control.should_training_stop,
            "losses": losses,
            "logged_step": trainer._globalstep_last_logged,
            "logged_loss": trainer._total_loss_scalar,
            "first_step": self._first_step,
            "seconds": self.seconds,
            "best": None if best is None else Path(best).name,
        }
        if trainer.replay.order is not None:
            facts["order"] = asdict(trainer.replay.order)
        seal_folder(folder, facts)

    def started(self, started: tuple[int, int], steps_per_epoch: int) -> tuple[int, int]:
        """The (epoch, batches of it to skip) with which Trainer starts, put right for the end of an epoch.

        Trainer saves before an epoch's end, and would go on after it, so without its evaluation. Of data without a
        length it does not know where a pass over them ends.
        """
        trainer = self.trainer
        if self._facts is None:
            return started
        best = self._facts["best"]
        if best is not None:  # the output folder may have been moved
            trainer.state.best_model_checkpoint = str(Path(self._path).parent / best)
        epochs, batches = started
        if (
            trainer.state.num_train_epochs == sys.maxsize and not trainer.args.ignore_data_skip
        ):  # data without a length
            facts = self._facts
            return (facts["epoch"] + 1, 0) if facts["epoch_ended"] else (facts["epoch"], facts["batches"])
        if batches == 0 and epochs > 0 and not self._facts["epoch_ended"] and not trainer.args.ignore_data_skip:
            return epochs - 1, steps_per_epoch * trainer.args.gradient_accumulation_steps
        return started

    def enter_epoch(self, epoch: int, batches: int) -> None:
        """A pass over the data begins, and `batches` of it are skipped."""
        self._epoch, self._batches = epoch, batches

    def nothing_to_train(self, epoch: int, first_epoch: int, batches: int, steps_per_epoch: int) -> bool:
        """Whether an epoch was trained to its end, or training to its end, before the checkpoint was written."""
        if self._facts is None or epoch != first_epoch:
            return False
        return self.ended or batches == steps_per_epoch * self.trainer.args.gradient_accumulation_steps

    @property
    def over(self) -> bool:
        """Whether training had ended, and the end of its last epoch too, when the checkpoint was written."""
        facts = self._facts or {"epoch_ended": False}
        return facts["epoch_ended"] and facts["step"] == self.trainer.state.global_step and self.ended

    @property
    def ended(self) -> bool:
        """Whether training has reached its last step, maybe in the process that wrote the checkpoint."""
        state, facts = self.trainer.state, self._facts or {}
        stopped = self.ends_where_it_stopped and facts.get("stopped", False) and facts["step"] == state.global_step
        return state.global_step >= state.max_steps or stopped

    def on_train_begin(self, args, state, control, **kwargs):
        self._began, self._first_step = time.monotonic(), state.global_step
        self._epoch_ended = self._has_trained = False
        if self._facts is None:
            return
        control.should_log = control.should_evaluate = control.should_save = False  # was done before it was written
        losses, trainer = self._facts["losses"], self.trainer
        if len(losses) == max(args.world_size, 1):
            trainer._tr_loss = torch.tensor(losses[args.process_index], device=args.device)
            trainer._globalstep_last_logged = self._facts["logged_step"]
            trainer._total_loss_scalar = self._facts["logged_loss"]
            self._first_step = trainer._initial_global_step = self._facts["first_step"]

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._epoch_ended = False

    def on_step_begin(self, args, state, control, **kwargs):
        self._has_trained = True

    def on_step_end(self, args, state, control, **kwargs):
        self._batches += self.trainer.current_gradient_accumulation_steps

    def on_epoch_end(self, args, state, control, **kwargs):
        self._epoch_ended = True
        if self._facts is not None and not self._has_trained:
            self.trainer._load_rng_state(self._path)  # otherwise Trainer loads it before the next batch


def last_checkpoint(
    folder: str | Path, require: Callable[[dict[str, Any]], None] = lambda facts: None, tidy: bool = False
) -> tuple[str, dict[str, Any]] | None:
    """The newest whole checkpoint in `folder`, as (path, its facts). Others are passed over, with a warning.

    Args:
        folder: of a training.
        require: raises DamagedFile if training cannot continue from a checkpoint with these facts.
        tidy: remove the checkpoints that are passed over; training writes them again.
    """
    for path in _numbered(folder):
        try:
            return str(path), _continuable(path, require)
        except DamagedFile as damage:
            _log.warning("%s. Training does not continue from %s.", damage, path.name)
            if tidy:
                remove_folder(path)
    return None


def checkpoint_of_trainer(folder: str | Path) -> bool:
    """Whether Trainer without a mask wrote this checkpoint, so that it has no manifest."""
    folder = Path(folder)
    return (folder / TRAINER_STATE_NAME).is_file() and not any(
        (folder / name).exists() for name in (MANIFEST_FILE, MASK_FILE)
    )


def rotate(newest: Path, most: int | None, best: str | None) -> None:
    """Remove old checkpoints as `save_total_limit` says, each as a whole: a kill leaves no part of one.

    Args:
        newest: the last checkpoint; it stays, like the best one.
        most: how many may be there, these two among them; None or 0: any number.
        best: the path of the best one, if there is one.
    """
    if not most or most < 0:
        return
    kept = {newest.name} | ({Path(best).name} if best is not None else set())
    others = [path for path in _numbered(newest.parent) if path.name not in kept]
    for path in others[max(most - len(kept), 0) :]:
        remove_folder(path)


def remove_checkpoints(folder: str | Path) -> None:
    """Remove all checkpoints in `folder`, so that its training starts from the beginning."""
    for path in _numbered(folder):
        remove_folder(path)


def _numbered(folder: str | Path) -> list[Path]:
    """The folders `checkpoint-STEP`, the newest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def _continuable(path: Path, require: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    facts = require_whole_folder(path)
    if facts["best"] not in (None, path.name):  # its weights are loaded at the end of training
        require_whole_folder(path.parent / facts["best"])
    require(facts)
    return facts
