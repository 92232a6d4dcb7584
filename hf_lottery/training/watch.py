"""Watch: looks in every training whether pruned weights are what they must be, and weights and loss are finite.

It only reads: a watched training has the same bits as one that is not watched. The mask is checked at a process's
first and last step of a training, and where Trainer logs, evaluates or saves; that all is finite, at the first and
last step of the whole training and where Trainer logs or evaluates. The latter are the same steps when a training that
was stopped goes on, so that a network that diverges is recorded alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from hf_lottery.distributed.deepspeed import is_zero
from hf_lottery.distributed.finite import not_finite
from hf_lottery.distributed.processes import (
    first_of_ranks,
    full,
    full_shape,
    is_main,
    local,
    named_buffers,
    named_parameters,
    not_persistent,
    require_agreement,
    shard_like,
)
from hf_lottery.results.diverged import Diverged
from hf_lottery.training.masked_step import MaskedStep
from hf_lottery.training.masking import Masking

logger = logging.getLogger(__name__)


class BrokenMaskError(ValueError):
    """A pruned weight does not have the value that it must have, or the mask itself has changed."""


class Watch(TrainerCallback):
    """The watch over one trainer's trainings. Its events must come after those of the callbacks that write masks.

    Args:
        trainer: its model is watched.
        masking: has the mask, and θ_k where pruned weights are held at it.

    Attributes:
        diverged: where the last training became nan or infinite; None if it did not.
        losses: of the optimizer step that runs, one for each batch that it accumulates.
    """

    def __init__(self, trainer: Trainer, masking: Masking):
        self.trainer, self.masking = trainer, masking
        self.diverged: Diverged | None = None
        self.losses: list[Tensor] = []
        self._stops = False
        self._first = 0
        self._infinite_at_start: frozenset[str] = frozenset()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """In the block, a training that diverges stops there. Elsewhere it goes on, as Trainer's does, and says so."""
        self._stops, self.diverged = True, None
        try:
            yield
        finally:
            self._stops = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.diverged, self._first = None, state.global_step + 1
        self.losses.clear()
        # some models hold -inf in a buffer on purpose, such as a causal mask
        self._infinite_at_start = frozenset(not_finite(named_buffers(self.trainer.model)))

    def on_step_begin(self, args, state, control, **kwargs):
        self.losses.clear()

    def on_step_end(self, args, state, control, **kwargs):
        step, last = state.global_step, state.global_step >= state.max_steps
        if last or control.should_log or control.should_evaluate or step in self._first_steps():
            self._look(step, with_loss=last or not self.trainer.accelerator.optimizer_step_was_skipped)
        first = step == self._first
        if first or last or control.should_log or control.should_evaluate or control.should_save:
            self._check(step, whole=first)
        self._stop(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_evaluate:
            self._look(state.global_step, with_loss=False)
        self._stop(control)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        data, metrics = self.trainer.eval_dataset, metrics or {}
        prefixes = ["eval", *(f"eval_{name}" for name in (data if isinstance(data, dict) else ()))]
        # a perplexity is e to the power of the loss
        names = [f"{prefix}_{name}" for prefix in prefixes for name in ("loss", "perplexity")]
        if any(not math.isfinite(metrics.get(name, 0.0)) for name in names):
            self._note(Diverged(state.global_step, None))
            self._stop(control)

    def on_train_end(self, args, state, control, **kwargs):
        # once more after the last step: callbacks that were added later have had their turn
        self._look(state.global_step, with_loss=False)
        self._check(state.global_step, whole=True)
        self.losses.clear()

    def _first_steps(self) -> tuple[int, ...]:
        """The first step of a training from step 0, and of one from step k."""
        point = self.masking.rewinding.point
        return (1,) if point is None else (1, point.step + 1)

    def _look(self, step: int, with_loss: bool) -> None:
        """Note the first tensor that is not finite; if there is none, a loss that is not.

        Args:
            step: the optimizer step that has just been made.
            with_loss: False: the gradient scaler has skipped the step, so that its loss changed nothing.
        """
        if self.diverged is not None:
            return
        model = self.trainer.model
        trained = {name: parameter for name, parameter in named_parameters(model).items() if parameter.requires_grad}
        buffers = {n: b for n, b in named_buffers(model).items() if n not in self._infinite_at_start}
        names = not_finite({**trained, **buffers})
        mine = Diverged(step, names[0]) if names else None
        if mine is None and with_loss and not_finite(dict(enumerate(self.losses))):
            mine = Diverged(step, None)
        self._note(first_of_ranks(mine))

    def _note(self, found: Diverged | None) -> None:
        if found is None or self.diverged is not None:
            return
        self.diverged = found
        if is_main() and not self._stops:
            logger.warning("training has diverged at %s: nan or infinite; it goes on", found.where)

    def _stop(self, control) -> None:
        if self.diverged is not None and self._stops:
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False  # of a network that is no use

    # --- the mask

    def _check(self, step: int, whole: bool) -> None:
        """Raise a BrokenMaskError on all ranks if the mask is broken on one of them.

        Args:
            step: the optimizer step that has just been made.
            whole: read the mask itself, count it, compare the ranks' and ask DeepSpeed for the weights. False: only
                compare the weights with the masked step's own, which are on their device.
        """
        self._refuse_growing_buffers()
        if self.diverged is not None:
            return  # a gradient norm of nan may reach pruned weights too; nothing is built on this network
        count = self._changed_count() if whole else None
        wrong = _moved_weight(self._pruned() if whole else self._pruned_by_the_step())  # may talk to the other ranks
        wrong = first_of_ranks(count or wrong)
        if wrong is not None:
            raise BrokenMaskError(f"after step {step} {wrong}")
        if whole:
            advice = "something has changed it during training; let nothing but trainer.mask = … change it"
            require_agreement("mask", self.masking.mask.fingerprint(), advice)

    def _refuse_growing_buffers(self) -> None:
        """Raise a ValueError for a buffer of checkpoints that is no longer shaped as in θ_k: it cannot be rewound."""
        point, model = self.masking.rewinding.point, self.trainer.model
        if point is None or not point.tensors:
            return
        caches = not_persistent(model)
        for name, buffer in named_buffers(model).items():
            then = point.tensors[name].shape if name in point.tensors else None
            if name not in caches and full_shape(buffer) != then:
                was = "was not there" if then is None else f"had the shape {tuple(then)}"
                raise ValueError(
                    f"the buffer '{name}' {was} at the rewind step and has {tuple(full_shape(buffer))} now, so that "
                    "it cannot be rewound: give it its full size from the start, or, if the model computes it itself, "
                    "register it with persistent=False"
                )

    def _changed_count(self) -> str | None:
        for name, (kept, total) in self.masking.mask.counts().items():
            expected = self.masking.counts[name][0]
            if kept != expected:
                return (
                    f"the mask of '{name}' keeps {kept} of {total} weights, and it kept {expected} when it was set: "
                    "something has written into it; to change a mask, set trainer.mask"
                )
        return None

    def _pruned(self) -> Iterator[_Pruned]:
        """Every pruned tensor by the mask and θ_k themselves, and not by what the masked step has made of them."""
        parameters = named_parameters(self.trainer.model)
        point = self.masking.pruned_values(self.masking.mask)
        for name, kept in self.masking.mask.items():
            parameter = parameters[name]
            if self.masking.counts[name][0] == kept.numel():
                continue
            if is_zero(parameter):
                value = full(parameter)
                kept = kept.to(value.device)
            else:
                value, kept = local(parameter).detach(), shard_like(kept, parameter)
            expected = torch.zeros((), dtype=value.dtype, device=value.device)
            if point is not None:
                expected = point[name].to(parameter.dtype)
                expected = expected.to(value.device) if is_zero(parameter) else shard_like(expected, parameter)
            yield name, parameter, value, kept, expected

    def _pruned_by_the_step(self) -> Iterator[_Pruned]:
        if isinstance(self.masking.step, MaskedStep):  # DeepSpeed's weights are compared at the first and last step
            for name, parameter, kept, expected in self.masking.step.pruned():
                yield name, parameter, local(parameter).detach(), kept, expected


# name, parameter, this rank's part of its values, of its mask, and of what its pruned weights must be
_Pruned = tuple[str, Tensor, Tensor, Tensor, Tensor]


def _moved_weight(pruned: Iterable[_Pruned]) -> str | None:
    """Say which pruned weight is not what it must be."""
    for name, parameter, value, kept, expected in pruned:
        wrong = (value != expected) > kept
        if bool(wrong.any()):
            index = tuple(wrong.nonzero()[0].tolist())
            part = "" if value.shape == parameter.shape or is_zero(parameter) else " (of this rank's rows)"
            found, right = float(value[index]), float(expected.expand_as(value)[index])
            return (
                f"the pruned weight {list(index)} of '{name}'{part} is {found:g} and must be {right:g} "
                f"({int(wrong.sum())} of its pruned weights are wrong): an "
                "optimizer, a hook or a callback writes into pruned weights, so the result would be no ticket; train "
                "without it, with optim adamw_torch"
            )
    return None
