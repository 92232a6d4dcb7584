"""LotteryTrainer: transformers' Trainer under a mask, with pruning, rewinding and the search for a ticket."""

from __future__ import annotations

import copy
import time
from itertools import islice
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.processes import from_main, named_parameters, require_agreement
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.pruning.context import CALIBRATION_BATCHES, PruningContext
from hf_lottery.pruning.step import check_network, next_mask
from hf_lottery.pruning.targets import match_rates, prunable
from hf_lottery.random_state import get_rng_state, set_rng_state
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.deepspeed import ZeroMaskedStep, ZeroTraining
from hf_lottery.training.masked_step import MaskedStep, forget_moments, inner_optimizer
from hf_lottery.training.network_folder import last_checkpoint
from hf_lottery.training.rewinding import RewindCallback
from hf_lottery.training.search import SearchMixin
from hf_lottery.training.unsupported import refuse_launchers, refuse_offloaded, refuse_what_cannot_be_kept_right


class LotteryMixin(SearchMixin):
    """Adds masks and the search for tickets to any Trainer: `class MyTrainer(LotteryMixin, SFTTrainer): ...`.

    Takes the Trainer's own arguments in its own order, and two more by name. Without them nothing is added: the
    training is the Trainer's, bit for bit.

    Args:
        lottery_config: how to search for a ticket.
        ticket: a ticket to train: its rewound weights are written into the model and its mask is kept.

    Raises:
        ValueError: a setting under which pruned weights could not be held still, or nothing to prune.
    """

    def __init__(self, *args, lottery_config: LotteryConfig | None = None, ticket: Ticket | None = None, **kwargs):
        if lottery_config is not None or ticket is not None:
            refuse_offloaded(args[0] if args else kwargs.get("model"))
        super().__init__(*args, **kwargs)
        self.lottery_config = lottery_config
        self._mask: Mask | None = None
        self._masked_step: MaskedStep | ZeroMaskedStep | None = None
        if lottery_config is None and ticket is None:
            return
        if lottery_config is None:
            lottery_config = LotteryConfig(pruned_value=ticket.pruned_becomes)
        elif ticket is not None and lottery_config.pruned_value != ticket.pruned_becomes:
            raise ValueError(
                f"lottery_config has pruned_value {lottery_config.pruned_value!r}, and the ticket's pruned weights "
                f"are {ticket.pruned_becomes!r}: give LotteryConfig(pruned_value={ticket.pruned_becomes!r})"
            )
        self.lottery_config = config = lottery_config
        refuse_what_cannot_be_kept_right(self.args, config)
        refuse_launchers(self, config)
        self._zero = ZeroTraining(self) if self.is_deepspeed_enabled else None
        self.model_init = None  # it has made the model; called again in train() it would undo every rewind

        modules = (config.target_modules, config.exclude_modules, config.prune_embeddings)
        targets = prunable(self.model, *modules)
        self._targets = tuple(targets)
        self._rates = match_rates(config.pruning_rates, self._targets)
        check_network(self.model, config, targets, self._rates)
        self.current_round = 0
        self._last_trained: int | None = None  # the round whose trained weights the model holds
        self._interrupted = False  # whether the last training broke off, and left the model somewhere in between
        self._seconds_before = 0.0  # of the training under way, in earlier processes
        self._moments_masked = False  # whether the optimizer starts with moments of this very mask
        self._replay: str | None = None  # where the next train() starts over: "rewind_point", "start", or not at all
        self._last_lr_factor: float | None = None
        self._own_optimizer = self.optimizer is not None
        self._fresh_optimizer = copy.deepcopy(self.optimizer.state_dict()) if self.optimizer is not None else None
        self._fresh_scheduler = (
            copy.deepcopy(self.lr_scheduler.state_dict()) if self.lr_scheduler is not None else None
        )
        self._fresh_scaler = copy.deepcopy(self.accelerator.scaler.state_dict()) if self.accelerator.scaler else None

        self._rewind_callback = RewindCallback(config.rewind_step, Path(self.args.output_dir) / "rewind", trainer=self)
        if ticket is None:
            self._mask = Mask.ones((name, self._parameters()[name]) for name in self._targets)
        else:
            ticket.apply_to(self.model)
            self._mask = ticket.mask
            if config.pruned_value == "init":
                self._rewind_callback.point = RewindPoint.capture(self.model)
        self._density = self._mask.density()
        if self._zero is not None:
            self.add_callback(self._zero)
        self.add_callback(self._rewind_callback)
        self.add_callback(_MaskCallback(self))

    # --- the steps ---

    @property
    def mask(self) -> Mask:
        """The current mask: parameter name -> bool tensor, True = kept."""
        if self._mask is None:
            raise RuntimeError("there is no mask: pass lottery_config or ticket to the trainer")
        return self._mask

    @mask.setter
    def mask(self, mask: Mask) -> None:
        self._set_mask(mask)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Exactly `Trainer.train`, under the current mask; after `rewind()`, from step k on."""
        if self._mask is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        rewinding = self._rewind_callback
        if resume_from_checkpoint is True:
            resume_from_checkpoint = from_main(lambda: last_checkpoint(self.args.output_dir)) or True
        if resume_from_checkpoint and rewinding.point is None:
            rewinding.load(self.args)
        self._moments_masked = False
        if isinstance(resume_from_checkpoint, str) and (saved := Path(resume_from_checkpoint) / MASK_FILE).is_file():
            self._set_mask(Mask.load(saved))
            self._moments_masked = True
        if rewinding.start_rng is None:
            rewinding.start_rng = get_rng_state()
        elif self._replay or resume_from_checkpoint:
            set_rng_state(rewinding.start_rng)
        rewinding.replaying = self._replay == "rewind_point"
        if rewinding.replaying and not resume_from_checkpoint and rewinding.point.step > 0:
            resume_from_checkpoint = str(rewinding.folder)
        if self._zero is not None:
            self._zero.enter(bool(resume_from_checkpoint) and resume_from_checkpoint != str(rewinding.folder))
        self._interrupted = True
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._detach_mask()
            rewinding.replaying = False
        self._interrupted = False
        self._replay = None
        if self._last_lr_factor is None:
            group = inner_optimizer(self.optimizer).param_groups[0]
            first = group.get("initial_lr", group["lr"])
            self._last_lr_factor = group["lr"] / first if first else 0.0
        return output

    def prune(self) -> Mask:
        """Remove the lowest-scoring `pruning_rate` of what is left; returns (and keeps) the new mask."""
        self._at_rest()
        mask = next_mask(self.pruning_context())
        self._set_mask(mask)
        self.current_round += 1
        return mask

    def pruning_context(self) -> PruningContext:
        """What the next pruning may use: model, weights, θ_k, calibration batches and loss."""

        def batches() -> list:
            if self.train_dataset is None:
                raise ValueError(
                    f"criterion {self.lottery_config.criterion_name} looks at data, and the trainer has no "
                    "train_dataset: give it one, or use criterion magnitude"
                )
            drawn = list(islice(self.get_train_dataloader(), CALIBRATION_BATCHES))
            return [self._prepare_inputs(batch) for batch in drawn]

        return PruningContext(
            model=self.model,
            config=self.lottery_config,
            mask=self.mask,
            weights=self.prunable_weights(),
            rates=self.pruning_rates(),
            initial=lambda: self.rewind_point.tensors,
            batches=batches,
            loss=lambda batch: self.compute_loss(self.model, dict(batch)),
            seed=self.args.seed * 1000 + self.current_round,
        )

    def prunable_weights(self) -> dict[str, torch.nn.Parameter]:
        """The live parameters that the mask is over, by name."""
        parameters = self._parameters()
        return {name: parameters[name] for name in self._mask}

    def pruning_rates(self) -> dict[str, float]:
        """Parameter name -> its own rate, where it is not `pruning_rate`."""
        return dict(self._rates)

    def rewind(self) -> None:
        """Put survivors back to θ_k (as `retraining` says) and let the next `train()` start as training was at step k.

        Optimizer, scheduler, gradient scaler, random numbers and data order all start over, so that under an all-ones
        mask the next training is round 0 again, bit for bit.
        """
        self._at_rest()
        if self.lottery_config.retraining == "weight_rewinding":
            for name, parameter in self._parameters().items():
                if parameter.requires_grad and name not in self.rewind_point.tensors:
                    raise ValueError(
                        f"'{name}' was frozen at the rewind step and is trained now: it cannot be rewound"
                    )
            self._rewind_callback.restore(self.model)
        self._masked(self._mask).mask_weights()
        self.restart()

    def restart(self, from_rewind_point: bool = True) -> None:
        """Let the next `train()` start as training was at step k (or at step 0), from the weights as they are now.

        Args:
            from_rewind_point: start at step k with the moments of step k; False: at step 0 with none.
        """
        self._at_rest()
        if self._own_optimizer:
            inner_optimizer(self.optimizer).load_state_dict(copy.deepcopy(self._fresh_optimizer))
        else:
            self.optimizer = None
        if self._fresh_scheduler is not None:
            self.lr_scheduler.load_state_dict(copy.deepcopy(self._fresh_scheduler))
        else:
            self.lr_scheduler = None
        if self._fresh_scaler is not None:
            self.accelerator.scaler.load_state_dict(copy.deepcopy(self._fresh_scaler))
        self._replay = "rewind_point" if from_rewind_point else "start"

    # --- Trainer's own seams ---

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self._mask is not None:
            logs = {**logs, "round": self.current_round, "density": self._density}
        super().log(logs, *args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        scheduler = super().create_scheduler(*args, **kwargs)
        if self._mask is None or not self._replay or self.lottery_config.retraining != "fine_tuning":
            return scheduler
        factor = self._last_lr_factor
        if not factor:
            raise ValueError(
                f"fine_tuning goes on at the last learning rate, which is 0 under lr_scheduler_type "
                f"{self.args.lr_scheduler_type.value}: choose one that ends above 0, or learning_rate_rewinding"
            )
        self.lr_scheduler = LambdaLR(self.optimizer, lambda step: factor)
        return self.lr_scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args, **kwargs) -> None:
        if self._mask is not None and Path(resume_from_checkpoint) == self._rewind_callback.folder:
            return  # rewind() has put the weights back; the folder holds the rest of the training's state
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _save(self, output_dir: str | None = None, *args, **kwargs) -> None:
        super()._save(output_dir, *args, **kwargs)
        if self._mask is not None and self.args.should_save:
            self._mask.save(Path(output_dir or self.args.output_dir) / MASK_FILE)

    # --- inside ---

    def _at_rest(self) -> None:
        """The model is about to be looked at or changed between trainings."""
        if self._zero is not None:
            self._zero.leave()

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return named_parameters(self.model)

    def _set_mask(self, mask: Mask) -> None:
        require_agreement(
            "mask", mask.fingerprint(), "see that they read the same data and start from the same weights"
        )
        if self._masked_step is not None and self._zero is not None:
            raise ValueError("the mask cannot change while DeepSpeed trains: change it between two trainings")
        self._at_rest()
        if any(isinstance(parameter, DTensor) for parameter in self._parameters().values()):
            mask = Mask.packing(mask.items())  # each process's step holds its own part
        self._masked(mask).mask_weights()
        self._mask = mask
        self._density = mask.density()
        self._moments_masked = False
        if self.optimizer is not None:
            forget_moments(inner_optimizer(self.optimizer))
        if self._masked_step is not None:
            self._attach_mask()

    def _masked(self, mask: Mask) -> MaskedStep | ZeroMaskedStep:
        if self._zero is not None and self._zero.engine_runs:
            return ZeroMaskedStep(self._parameters(), mask)
        held_at_init = self.lottery_config.pruned_value == "init" and mask.density() < 1
        values = self.rewind_point.tensors if held_at_init else None
        return MaskedStep(self._parameters(), mask, values)

    def _attach_mask(self) -> None:
        self._detach_mask()
        self._masked_step = self._masked(self._mask)
        optimizer = inner_optimizer(self.optimizer)
        self._masked_step.attach(optimizer, moments=not self._moments_masked)
        if self._replay and self.lottery_config.retraining == "fine_tuning":
            for group in optimizer.param_groups:  # those of step k were loaded after the scheduler had set its own
                group["lr"] = group.get("initial_lr", group["lr"]) * self._last_lr_factor
            rates = [group["lr"] for group in optimizer.param_groups]
            self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), "_last_lr": rates})  # what is logged

    def _detach_mask(self) -> None:
        if self._masked_step is not None:
            self._masked_step.detach()
            self._masked_step = None


class _MaskCallback(TrainerCallback):
    """Attaches the masked step once model and optimizer are prepared (sharded, compiled, loaded)."""

    def __init__(self, trainer: LotteryMixin):
        self.trainer = trainer
        self.began = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()
        self.trainer._attach_mask()

    def on_save(self, args, state, control, **kwargs):
        self.trainer.note_seconds(Path(args.output_dir), time.monotonic() - self.began)
        # where weights are saved as shards, Trainer._save is not called
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}" / MASK_FILE
        if args.should_save and saved.parent.is_dir() and not saved.is_file():
            self.trainer.mask.save(saved)

    def on_train_end(self, args, state, control, **kwargs):
        if isinstance(self.trainer._masked_step, ZeroMaskedStep):
            self.trainer._masked_step.require_zero()


class LotteryTrainer(LotteryMixin, Trainer):
    """transformers' Trainer with lottery tickets: its arguments in its order, then `lottery_config` and `ticket`."""
