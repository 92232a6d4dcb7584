"""Masking: keeps a trainer's model under its mask, between trainings and at every step of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from hf_lottery.distributed.processes import named_parameters, require_agreement
from hf_lottery.mask import Mask
from hf_lottery.training.deepspeed import DeepSpeedMaskedStep, DeepSpeedTraining
from hf_lottery.training.masked_step import MaskedStep, forget_moments, inner_optimizer
from hf_lottery.training.rewinding import RewindCallback


class Masking(TrainerCallback):
    """The mask of a trainer, and the masked step of the training that runs.

    Args:
        trainer: its current model and optimizer are masked.
        mask: the first mask. The weights must be masked already.
        rewinding: has θ_k, the values of pruned weights if `pruned_value` is init.
        pruned_value: zero or init.
        deepspeed: moves the model into DeepSpeed's engine and out of it; None: no DeepSpeed.

    Attributes:
        mask: name -> bool tensor, True = kept.
        counts: name -> (kept, all), counted when the mask was set.
        density: of the mask.
        step: the masked step of the training that runs; None between trainings.
        moments_are_masked: whether the training starts with an optimizer state of this very mask, which stays.
    """

    def __init__(
        self,
        trainer: Trainer,
        mask: Mask,
        rewinding: RewindCallback,
        pruned_value: str,
        deepspeed: DeepSpeedTraining | None,
    ):
        self.trainer, self.rewinding, self.pruned_value = trainer, rewinding, pruned_value
        self.mask, self.counts, self.density = mask, mask.counts(), mask.density()
        self._first = None if self.density == 1 else Mask.packing(mask.items())  # of a model that is sparse already
        self.moments_are_masked = False
        self._deepspeed = deepspeed
        self.step: MaskedStep | DeepSpeedMaskedStep | None = None

    def set(self, mask: Mask) -> None:
        """Change the mask: masks the weights and drops the optimizer state. Training may run, but not in DeepSpeed.

        Raises:
            ValueError: the mask does not fit the model, differs between ranks, or DeepSpeed trains.
        """
        _require_agreement(mask)
        if self.step is not None and self._deepspeed is not None:
            raise ValueError("the mask cannot change while DeepSpeed trains: change it between two trainings")
        self.leave_engine()
        if any(isinstance(parameter, DTensor) for parameter in named_parameters(self.trainer.model).values()):
            mask = Mask.packing(mask.items())  # each process's step holds its own part
        self._make_step(mask).mask_weights()
        self.mask, self.counts, self.density = mask, mask.counts(), mask.density()
        self.moments_are_masked = False
        if self.trainer.optimizer is not None:
            forget_moments(inner_optimizer(self.trainer.optimizer))
        if self.step is not None:
            self._attach()

    def exchange(self, mask: Mask) -> None:
        """Change the mask while training runs: weights that stay keep their moments, those that come in have zeros.

        Raises:
            ValueError: the mask does not fit the model, or differs between ranks.
        """
        _require_agreement(mask)
        self.mask, self.counts, self.density = mask, mask.counts(), mask.density()
        self.moments_are_masked = False
        self._attach()

    def mask_weights(self) -> None:
        """Write zero (or θ_k) into every pruned weight."""
        self._make_step(self.mask).mask_weights()

    def enter_training(self, from_checkpoint: bool, moments_are_masked: bool = False) -> None:
        """A training starts: from the model's weights, or from a checkpoint, maybe one under this very mask."""
        self.moments_are_masked = moments_are_masked
        if self._deepspeed is not None:
            self._deepspeed.enter(from_checkpoint)

    def leave_engine(self) -> None:
        """No training runs: if the last one used a DeepSpeed engine, the model becomes a plain one again."""
        if self._deepspeed is not None:
            self._deepspeed.leave()

    def detach(self) -> None:
        """Remove the masked step of the training that ran."""
        if self.step is not None:
            self.step.detach()
            self.step = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._attach()

    def pruned_values(self, mask: Mask) -> Mapping[str, Tensor] | None:
        """Name -> the value that pruned weights have under `mask`, where it is not zero; None: it is zero.

        Before step k there is no θ_k. Pruned are then only weights that the model itself has at zero.

        Raises:
            RuntimeError: pruned weights are to be held at θ_k, and step k has not been reached.
        """
        if self.pruned_value == "zero" or mask.density() == 1:
            return None
        if self.rewinding.point is None and self._first is not None and mask == self._first:
            return None
        return self.rewinding.require_point().tensors

    def _make_step(self, mask: Mask) -> MaskedStep | DeepSpeedMaskedStep:
        parameters = named_parameters(self.trainer.model)
        values = self.pruned_values(mask)
        if self._deepspeed is not None and self._deepspeed.engine_runs:
            return DeepSpeedMaskedStep(parameters, mask, values)
        return MaskedStep(parameters, mask, values)

    def _attach(self) -> None:
        self.detach()
        self.step = self._make_step(self.mask)
        self.step.attach(inner_optimizer(self.trainer.optimizer), moments=not self.moments_are_masked)


def _require_agreement(mask: Mask) -> None:
    require_agreement("mask", mask.fingerprint(), "see that they read the same data and start from the same weights")
