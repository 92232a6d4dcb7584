"""LotteryTrainer: transformers' Trainer under a mask, with pruning, rewinding and the search for a ticket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.processes import named_parameters
from hf_lottery.layout import REWIND_FOLDER
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.pruning.context import CALIBRATION_BATCHES, PruningContext
from hf_lottery.pruning.coverage import Coverage
from hf_lottery.pruning.step import next_mask, rehearse
from hf_lottery.redaction import UnsavedToken
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.beginning import begin
from hf_lottery.training.calibration import calibration_batches
from hf_lottery.training.checkpointing import CheckpointMixin
from hf_lottery.training.checkpoints import Checkpoints
from hf_lottery.training.data_order import DataOrder, refuse_order_that_no_seed_decides
from hf_lottery.training.deepspeed import DeepSpeedTraining
from hf_lottery.training.masking import Masking
from hf_lottery.training.replay import REWIND_POINT, STEP_0, InitialState, Replay
from hf_lottery.training.rewinding import RewindCallback, refuse_newly_trained
from hf_lottery.training.search import Search
from hf_lottery.training.unsupported import (
    refuse_compiled_or_offloaded,
    refuse_other_pruned_value,
    refuse_unsupported_arguments,
    refuse_unsupported_launcher,
)
from hf_lottery.training.watch import Watch


class LotteryMixin(CheckpointMixin):
    """Adds masks and the search for tickets to any Trainer: `class MyTrainer(LotteryMixin, SFTTrainer): ...`.

    Takes the Trainer's own arguments in its own order, and two more by name. Without these two it is the Trainer, bit
    for bit, and the methods here raise a RuntimeError.

    Args:
        lottery_config: how to search for a ticket.
        ticket: a ticket to train: its rewound weights are written into the model and its mask is kept.

    Attributes:
        lottery_config: the one given; for a ticket alone, the defaults.
        current_round: the number of prunings; `log` adds it to every record.
        model_factory: `model_init` as it was given; controls draw new weights with it.
        replay: how the next `train()` starts.
        rewinding: the callback that captures θ_k; None without `lottery_config` and `ticket`.
        checkpoints: the callback that completes and checks checkpoints; None without `lottery_config` and `ticket`.
        coverage: what the mask is over, of all that is trained; None without `lottery_config` and `ticket`.
        watch: the callback that checks pruned weights, and says if a training has diverged; None as above.
        other_text: the `hf_lottery.text_blocks.Blocks` on which a search measures forgetting; None: it does not.

    Raises:
        ValueError: a setting under which pruned weights could change, or nothing to prune.
    """

    def __init__(self, *args, lottery_config: LotteryConfig | None = None, ticket: Ticket | None = None, **kwargs):
        # Set before Trainer's __init__, because that of a subclass may log, save or make its optimizer.
        if lottery_config is None and ticket is not None:
            lottery_config = LotteryConfig(pruned_value=ticket.pruned_becomes)
        self.lottery_config, self.model_factory, self.other_text = lottery_config, None, None
        self.current_round = 0
        self.replay = Replay()
        self.rewinding: RewindCallback | None = None
        self.checkpoints: Checkpoints | None = None
        self._masking: Masking | None = None  # None: plain Trainer
        self.watch: Watch | None = None
        self._initial_state: InitialState | None = None
        self.coverage: Coverage | None = None
        self._rates: dict[str, float] = {}  # parameter name -> its own rate, if that is not `pruning_rate`
        if lottery_config is not None:
            refuse_compiled_or_offloaded(args[0] if args else kwargs.get("model"))
        super().__init__(*args, **kwargs)
        if self.args.hub_token is not None:  # Trainer pickles its arguments into every checkpoint
            self.args.hub_token = UnsavedToken(self.args.hub_token)
        if lottery_config is not None:
            self._set_up(lottery_config, ticket)

    def _set_up(self, config: LotteryConfig, ticket: Ticket | None) -> None:
        refuse_other_pruned_value(config, ticket)
        refuse_unsupported_arguments(self.args, config)
        refuse_unsupported_launcher(self, config)
        refuse_order_that_no_seed_decides(self, config)
        deepspeed = DeepSpeedTraining(self) if self.is_deepspeed_enabled else None
        self.model_factory, self.model_init = self.model_init, None  # train() would undo every rewind with it
        if ticket is not None:
            ticket.apply_to(self.model)
        beginning = begin(self, config, ticket)
        self._rates, self.coverage = beginning.rates, beginning.coverage
        self._initial_state = InitialState(self)
        folder = Path(self.args.output_dir) / REWIND_FOLDER
        self.rewinding = RewindCallback(config.rewind_step, folder, self, self.replay)
        if ticket is not None and config.pruned_value == "init":
            self.rewinding.point = RewindPoint.capture(self.model)
        self.checkpoints = Checkpoints(self)
        self._masking = Masking(self, beginning.mask, self.rewinding, config.pruned_value, deepspeed)
        # Callback order: Trainer's, the caller's, then ours: DeepSpeed's writes the weights into the engine; θ_0 is
        # captured; the masked step is made, which may need θ_k; the watch looks at what all of them have done.
        self.watch = Watch(self, self._masking)
        self._data_order = DataOrder(self, self._masking)
        ours = (self._data_order, deepspeed, self.rewinding, self._masking, self.watch, self.checkpoints)
        for callback in filter(None, ours):
            self.add_callback(callback)
        rehearse(self.pruning_context())

    # --- the steps: train, prune, rewind

    @property
    def mask(self) -> Mask:
        """The current mask: parameter name -> bool tensor, True = kept."""
        return self._require_masking().mask

    @mask.setter
    def mask(self, mask: Mask) -> None:
        self._require_masking().set(mask)

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args, **kwargs):
        """Exactly `Trainer.train`, under the current mask.

        It starts in one of three ways: fresh; as at the rewind point (after `rewind()`); from a checkpoint.
        """
        if self._masking is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        resume_from_checkpoint = self.checkpoints.choose(resume_from_checkpoint or None)
        self._data_order.choose()
        if resume_from_checkpoint is not None:
            resume = self._start_from_checkpoint(resume_from_checkpoint)
        elif self.replay.start == REWIND_POINT:
            resume = self._start_from_rewind_point()
        else:
            resume = self._start_fresh()
        with self.replay.training(self):
            try:
                return super().train(resume, *args, **kwargs)
            finally:
                self._masking.detach()

    def _start_fresh(self) -> None:
        """From the weights as they are, at step 0."""
        self.replay.set_start_rng(again=self.replay.start == STEP_0)
        self._masking.enter_training(from_checkpoint=False)

    def _start_from_rewind_point(self) -> str | None:
        """From the weights as they are, with optimizer, scheduler, random numbers and data order of step k."""
        step = self.rewind_point.step
        self.replay.set_start_rng(again=True)
        self._masking.enter_training(from_checkpoint=False)
        return str(self.rewinding.folder) if step > 0 else None

    def _start_from_checkpoint(self, checkpoint: str | bool) -> str | bool:
        """From a checkpoint, with the mask in it. True: the one that Trainer finds."""
        if self.rewinding.point is None:
            self.rewinding.load(self.args)
        has_mask = isinstance(checkpoint, str) and (Path(checkpoint) / MASK_FILE).is_file()
        if has_mask:
            self.mask = Mask.load(Path(checkpoint) / MASK_FILE)
        self.replay.set_start_rng(again=True)
        self._masking.enter_training(from_checkpoint=True, moments_are_masked=has_mask)
        return checkpoint

    def prune(self) -> Mask:
        """Remove the lowest-scoring `pruning_rate` of what is left; returns (and keeps) the new mask."""
        self._require_masking().leave_engine()
        self.mask = next_mask(self.pruning_context())
        self.current_round += 1
        return self.mask

    def pruning_context(self) -> PruningContext:
        """What the next pruning may use: model, weights, θ_k, calibration batches and loss."""
        return PruningContext(
            model=self.model,
            config=self.lottery_config,
            mask=self.mask,
            weights=self.prunable_weights(),
            rates=dict(self._rates),
            initial=lambda: self.rewind_point.tensors,
            batches=lambda: calibration_batches(self, CALIBRATION_BATCHES, self.lottery_config.criterion_name),
            loss=lambda batch: self.compute_loss(self.model, dict(batch)),
            seed=(self.args.seed * 1000 + self.current_round) % 2**32,  # numpy takes 32 bits
        )

    def prunable_weights(self) -> dict[str, torch.nn.Parameter]:
        """The live parameters that the mask is over, by name."""
        parameters = named_parameters(self.model)
        return {name: parameters[name] for name in self.mask}

    def rewind(self, retraining: str | None = None) -> None:
        """Set the surviving weights back to θ_k (as `retraining` says), and start the next `train()` as at step k.

        Optimizer, scheduler, gradient scaler, random numbers and data order all start again, so that under an all-ones
        mask the next training equals the first, bit for bit (unless rewind_optimizer or data_order is fresh).

        Args:
            retraining: one of `config.RETRAINING`; None: that of `lottery_config`.

        Raises RuntimeError before step k is reached, and ValueError for a weight that was frozen at step k.
        """
        self._require_masking().leave_engine()
        retraining = retraining or self.lottery_config.retraining
        if retraining == "weight_rewinding":
            refuse_newly_trained(self.model, self.rewind_point)
            self.rewind_point.restore(self.model)
        self._masking.mask_weights()
        self.restart(retraining=retraining)

    def restart(self, from_rewind_point: bool = True, retraining: str | None = None, seed: int | None = None) -> None:
        """Start the next `train()` as at step k (or at step 0), but from the weights as they are now.

        Args:
            from_rewind_point: start at step k with the optimizer state of step k; False: at step 0 with none.
            retraining: one of `config.RETRAINING`; None: that of `lottery_config`.
            seed: use the random numbers of this seed, also for the data order; None: as `data_order` says.

        Raises:
            RuntimeError: step k has not been reached yet.
        """
        self._require_masking().leave_engine()
        if from_rewind_point:
            self.rewinding.require_point()
        self._initial_state.restore(self)
        start = REWIND_POINT if from_rewind_point else STEP_0
        self.replay.request(start, retraining or self.lottery_config.retraining, seed)

    @property
    def rewind_point(self) -> RewindPoint:
        """θ_k. Raises RuntimeError before step k of the first training."""
        self._require_masking()
        return self.rewinding.require_point()

    def load_rewind_point(self) -> None:
        """Read θ_k and the rest of the state at step k from `output_dir`, if this trainer does not have them.

        Raises:
            FileNotFoundError: no training has written them there.
        """
        self._require_masking()
        if self.rewinding.point is None and not self.rewinding.load(self.args):
            raise FileNotFoundError(f"there is no rewind point in {self.rewinding.folder}: run round 0 first")

    # --- the search

    def find_ticket(self) -> Ticket:
        """Train, prune, rewind, `num_rounds` times: see `Search.find_ticket`."""
        self._require_masking()
        return Search(self).find_ticket()

    def ticket(self, number: int | None = None, **about: Any) -> Ticket:
        """The ticket of a finished round; None: of the last. See `Search.ticket`."""
        self._require_masking()
        return Search(self).ticket(number, **about)

    # --- methods of Trainer

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self._masking is not None:
            logs = {**logs, "round": self.current_round, "density": self._masking.density}
        super().log(logs, *args, **kwargs)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.watch is not None:
            self.watch.losses.append(loss)
        return loss

    def create_scheduler(self, *args, **kwargs):
        scheduler = super().create_scheduler(*args, **kwargs)
        if self.replay.retraining == "fine_tuning":
            schedule = self.args.lr_scheduler_type.value
            scheduler = self.lr_scheduler = self.replay.constant_schedule(self.optimizer, schedule)
        return scheduler

    def _save(self, output_dir: str | None = None, *args, **kwargs) -> None:
        super()._save(output_dir, *args, **kwargs)
        if self._masking is not None and self.args.should_save:
            self.mask.save(Path(output_dir or self.args.output_dir) / MASK_FILE)

    def _require_masking(self) -> Masking:
        if self._masking is None:
            raise RuntimeError("this trainer has no mask: pass lottery_config or ticket to the trainer")
        return self._masking


class LotteryTrainer(LotteryMixin, Trainer):
    """transformers' Trainer with lottery tickets: its arguments in its order, then `lottery_config` and `ticket`."""
