"""CheckpointMixin: the methods of Trainer that write a checkpoint and continue from one, or from the rewind point."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.trainer import SCHEDULER_NAME

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.processes import from_main
from hf_lottery.files import naming
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.sealed import readable, require_whole_folder
from hf_lottery.training.checkpoints import Checkpoints, checkpoint_of_trainer, rotate
from hf_lottery.training.masked_step import inner_optimizer
from hf_lottery.training.rewinding import RewindCallback


class CheckpointMixin:
    """A Trainer that continues from a checkpoint as if it had not been interrupted.

    Attributes:
        checkpoints: None: exactly Trainer's checkpoints.
        rewinding: has the folder of the rewind point; None: there is none.
        lottery_config: what of the state at step k is used again.
    """

    checkpoints: Checkpoints | None = None
    rewinding: RewindCallback | None = None
    lottery_config: LotteryConfig | None = None

    def _save_checkpoint(self, model, trial) -> None:
        if self.checkpoints is None:
            return super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        most, self.args.save_total_limit = self.args.save_total_limit, None  # others are kept until this one is whole
        try:
            with naming(folder, RuntimeError):  # torch.save's own error
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = most
        self.checkpoints.seal(folder)
        if self.args.should_save:
            rotate(folder, most, self.state.best_model_checkpoint)

    def _init_training_state(self, max_steps: int, steps_per_epoch: int, *args, **kwargs) -> tuple[int, int]:
        started = super()._init_training_state(max_steps, steps_per_epoch, *args, **kwargs)
        if self.checkpoints is None:
            return started
        return self.checkpoints.started(started, steps_per_epoch)

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.checkpoints is None:
            return super()._run_epoch(*args, **kwargs)
        if self.checkpoints.over:
            self.control.should_training_stop = True
            return
        epoch, first = kwargs["epoch"], kwargs["epochs_trained"]
        skipped = kwargs["steps_trained_in_current_epoch"]
        self.checkpoints.enter_epoch(epoch, skipped if epoch == first else 0)
        if self.checkpoints.nothing_to_train(epoch, first, skipped, kwargs["num_update_steps_per_epoch"]):
            kwargs["num_update_steps_per_epoch"] = 0  # no step is left, only what happens at an epoch's end
        super()._run_epoch(*args, **kwargs)
        if self.checkpoints.ended:
            self.control.should_training_stop = True

    def _finalize_training(self, trial, num_train_samples: int, start_time: float):
        before = 0.0 if self.checkpoints is None else self.checkpoints.seconds_before
        return super()._finalize_training(trial, num_train_samples, start_time - before)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args, **kwargs) -> None:
        if self._is_rewind_point(resume_from_checkpoint):
            return  # rewind() has restored the weights; the folder holds the rest of the training's state
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """At the rewind point under `rewind_optimizer: fresh`: the schedule alone, and its learning rates.

        Source: open_lth, where a training from step k makes a new optimizer and lets the schedule go k steps.
        """
        if not self._is_rewind_point(checkpoint) or self.lottery_config.rewind_optimizer == "state":
            return super()._load_optimizer_and_scheduler(checkpoint)
        schedule = Path(checkpoint) / SCHEDULER_NAME
        with readable(schedule):
            state = torch.load(schedule, weights_only=True)
        self.lr_scheduler.load_state_dict(state)
        groups = inner_optimizer(self.optimizer).param_groups
        for group, rate in zip(groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _is_rewind_point(self, folder: str | None) -> bool:
        return folder is not None and self.rewinding is not None and Path(folder) == self.rewinding.folder

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self.checkpoints is not None and not from_main(lambda: checkpoint_of_trainer(best)):
            from_main(lambda: require_whole_folder(best))
        super()._load_best_model()
        if self.checkpoints is not None and (Path(best) / MASK_FILE).is_file():
            mask = Mask.load(Path(best) / MASK_FILE)
            if mask != self.mask:  # it has changed since, in this very training
                self.mask = mask
