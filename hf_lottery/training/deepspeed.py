"""Training under a mask inside a DeepSpeed engine, which steps by itself on fp32 master copies of the weights.

Three rules keep it exact. The weights that a training starts from are written into the masters. Pruned weights, their
gradients (as backward produces them, so before the clip) and their moments are zero; an optimizer that updates each
coordinate by itself keeps them so, and others are refused. Between trainings the engine is removed and the model is a
plain one again, so that pruning and rewinding are the same as without DeepSpeed.
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

# attributes that ZeRO-3 leaves on modules beside `ds_…`; they belong to the old engine and would break the next one
_LEFT_ON_MODULES = (
    "pre_bwd_fn",
    "post_bwd_fn",
    "applied_pre_backward_ref_cnt",
    "_original_parameters",
    "_external_params",
    "all_parameters",
)


class DeepSpeedMaskedStep:
    """The `MaskedStep` of a training inside an engine.

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
            moments: False: keep its state, which is of a training under this very mask.
        """
        mask_values(self._entries, optimizer.optimizer.state if moments else {})
        for parameter, kept in self._entries:
            # not a post-accumulate hook: those run after DeepSpeed has taken the gradient
            self._handles.append(parameter.register_hook(_GradientMask(kept.to(parameter.device))))

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _GradientMask:
    def __init__(self, kept: Tensor):
        self.pruned = ~kept

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.pruned, 0)


class DeepSpeedTraining(TrainerCallback):
    """Moves a trainer's model into the engine of each training, and out of it afterwards, without rounding.

    Its on_train_begin must run before those of callbacks that read weights.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._start: RewindPoint | None = None
        for parameter in trainer.model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.float()  # as masters are; a bf16 copy would round them

    @property
    def engine_runs(self) -> bool:
        """Whether the model is inside an engine now."""
        return self.trainer.deepspeed is not None

    def enter(self, from_checkpoint: bool) -> None:
        """A training starts: from the model's weights as they are, or from those of a checkpoint."""
        self.leave()
        self._start = None if from_checkpoint else RewindPoint.capture(self.trainer.model)

    def on_train_begin(self, args, state, control, **kwargs):
        if self._start is not None:
            self._start.restore(self.trainer.model)
            self._start = None

    def leave(self) -> None:
        """Remove the engine, if there is one: the model gets plain parameters on the CPU, with the masters' values."""
        trainer = self.trainer
        if not self.engine_runs:
            return
        plain = _plain_parameters(trainer.model)
        modules = [(module, dict(module._parameters)) for module in trainer.model.modules()]
        trainer.accelerator.free_memory()  # destroys the engine and its hooks
        for module, parameters in modules:
            module._parameters = {name: p if p is None else plain[id(p)] for name, p in parameters.items()}
            for name in [name for name in vars(module) if name.startswith("ds_") or name in _LEFT_ON_MODULES]:
                delattr(module, name)
        trainer.deepspeed, trainer.optimizer, trainer.lr_scheduler = None, None, None
        trainer.model_wrapped = trainer.model


def _plain_parameters(model: nn.Module) -> dict[int, nn.Parameter]:
    """id of each of the engine's parameters -> a whole parameter of the same value, on the CPU; fp32 if trained."""
    plain = {}
    for parameter in model.parameters():
        value = full(parameter).cpu()
        value = value.float() if parameter.requires_grad else value
        plain[id(parameter)] = nn.Parameter(value.clone(), requires_grad=parameter.requires_grad)
    return plain
