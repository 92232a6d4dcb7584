"""Training under a mask inside a DeepSpeed engine, where the step happens out of sight on fp32 masters.

Three rules keep it exact. Weights that a training starts from are written into the masters. Pruned weights, their
gradients (as backward produces them, so before the clip) and their moments are zero, and an optimizer that treats
every coordinate alone then leaves them so: others are refused. Between trainings the engine is given up and the model
is a plain one again, so that pruning and rewinding are what they are anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_lottery.distributed.deepspeed import mask_values
from hf_lottery.distributed.processes import full
from hf_lottery.mask import Mask
from hf_lottery.ticket.rewind_point import RewindPoint

# what ZeRO-3 leaves on modules beside `ds_…`; bound to the old engine, it would break the next one
_LEFT_ON_MODULES = (
    "pre_bwd_fn",
    "post_bwd_fn",
    "applied_pre_backward_ref_cnt",
    "_original_parameters",
    "_external_params",
    "all_parameters",
)


class ZeroMaskedStep:
    """As `hf_lottery.training.masked_step.MaskedStep`, inside an engine.

    Args:
        parameters: name -> the engine's parameter.
        mask: name -> bool tensor, True = kept.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], mask: Mask):
        self._entries = [(parameters[name], kept) for name, kept in mask.items() if not bool(kept.all())]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, optimizer: torch.optim.Optimizer, moments: bool = True) -> None:
        """Mask masters and moments now, and gradients until `detach`.

        Args:
            optimizer: DeepSpeed's, which wraps a torch optimizer over flat masters.
            moments: False: they are of a training under this very mask, and stay.
        """
        mask_values(self._entries, optimizer.optimizer.state if moments else {})
        for parameter, kept in self._entries:
            # a tensor's hook, not a post-accumulate one: those run after DeepSpeed has taken the gradient away
            self._handles.append(parameter.register_hook(_GradientMask(kept.to(parameter.device))))

    def detach(self) -> None:
        """Take every hook away again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def require_zero(self) -> None:
        """Count the pruned weights that are not zero.

        Raises:
            RuntimeError: there are any, so the optimizer does not treat every coordinate alone.
        """
        moved = sum(int(full(p)[~kept.to(p.device)].count_nonzero()) for p, kept in self._entries)
        if moved:
            raise RuntimeError(
                f"{moved} pruned weights were moved by the optimizer of DeepSpeed: its result is no ticket; "
                "set optim to adamw_torch"
            )


class _GradientMask:
    def __init__(self, kept: Tensor):
        self.pruned = ~kept

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.pruned, 0)


class ZeroTraining(TrainerCallback):
    """Brings a trainer's model into each training's engine, exactly, and out of it again.

    Its on_train_begin must come before those of the callbacks that read weights.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._start: RewindPoint | None = None
        for parameter in trainer.model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.float()  # what masters are; a bf16 copy would round them

    @property
    def engine_runs(self) -> bool:
        """Whether the model is inside an engine now."""
        return self.trainer.deepspeed is not None

    def enter(self, from_checkpoint: bool) -> None:
        """A training is about to start: from the model's weights as they are, or from those of a checkpoint."""
        self.leave()
        self._start = None if from_checkpoint else RewindPoint.capture(self.trainer.model)

    def on_train_begin(self, args, state, control, **kwargs):
        if self._start is not None:
            self._start.restore(self.trainer.model)
            self._start = None

    def leave(self) -> None:
        """Give the engine up, if there is one: the model gets plain parameters, on the CPU, of the masters' values."""
        trainer = self.trainer
        if not self.engine_runs:
            return
        plain: dict[int, nn.Parameter] = {}
        for parameter in trainer.model.parameters():
            value = full(parameter).cpu()
            value = value.float() if parameter.requires_grad else value
            plain[id(parameter)] = nn.Parameter(value.clone(), requires_grad=parameter.requires_grad)
        modules = [(module, dict(module._parameters)) for module in trainer.model.modules()]
        trainer.accelerator.free_memory()  # destroys the engine and its hooks
        for module, parameters in modules:
            module._parameters = {name: p if p is None else plain[id(p)] for name, p in parameters.items()}
            for name in [name for name in vars(module) if name.startswith("ds_") or name in _LEFT_ON_MODULES]:
                delattr(module, name)
        trainer.deepspeed, trainer.optimizer, trainer.lr_scheduler = None, None, None
        trainer.model_wrapped = trainer.model
