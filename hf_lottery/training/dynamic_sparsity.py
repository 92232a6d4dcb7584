"""DynamicSparsity: a mask that changes within a training, in which weights are dropped and others regrown."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.training_args import OptimizerNames

from hf_lottery.distributed.processes import named_parameters
from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import select
from hf_lottery.random_state import derived_seed
from hf_lottery.training.mask_schedule import (
    RIGL,
    SET,
    SHORTEST_TRAINING,
    MaskSchedule,
    needs_steps,
    unfit_setting,
    whole_weights,
)
from hf_lottery.training.masked_step import inner_optimizer
from hf_lottery.training.own_steps import OwnSteps

Grow = Callable[[str, Tensor, int], Tensor]


def exchange(weights: Mapping[str, Tensor], mask: Mask, share: float, grow: Grow) -> Mask:
    """The next mask: in every tensor a share of the kept weights is dropped, and as many are regrown.

    Args:
        weights: name -> weight, for the names of `mask`, on the devices of `mask`.
        mask: which weights are kept.
        share: of each tensor's kept weights, those of the smallest magnitude are dropped; rounded down.
        grow: (name, candidates, count) -> which `count` of the candidates are regrown; both masks are shaped as the
            weight. The weights just dropped are candidates too, as in the code of RigL's authors.

    Returns:
        A mask with as many kept weights in every tensor as `mask`.

    Source: RigL, Evci et al. 2020 (arXiv 1911.11134), Algorithm 1.
    """
    result = {}
    for name in sorted(mask):
        count = int(share * int(mask[name].count_nonzero()))
        survivors = select({name: weights[name]}, Mask({name: mask[name]}), count, key=torch.abs)[name]
        result[name] = survivors | grow(name, ~survivors, count)
    return Mask({name: result[name] for name in mask})


def largest(scores: Mapping[str, Tensor]) -> Grow:
    """Regrows where the score is of the largest magnitude: RigL's rule, with the dense gradient as the score."""

    def grow(name: str, candidates: Tensor, count: int) -> Tensor:
        others = int(candidates.count_nonzero()) - count
        return select({name: scores[name]}, Mask({name: candidates}), others, key=torch.abs)[name]

    return grow


def at_random(generator: torch.Generator) -> Grow:
    """Regrows at random places: SET's rule, Mocanu et al. 2018 (arXiv 1707.04780). The generator is on the CPU."""

    def grow(name: str, candidates: Tensor, count: int) -> Tensor:
        places = candidates.flatten().nonzero().flatten()
        chosen = places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]
        grown = torch.zeros_like(candidates, memory_format=torch.contiguous_format)
        grown.view(-1)[chosen] = True
        return grown

    return grow


class DynamicSparsity(TrainerCallback):
    """Changes the mask of a LotteryTrainer during its trainings, by RigL's rule or by SET's.

    Both drop the smallest magnitudes, on RigL's schedule. RigL regrows where the gradient of the step is largest, of
    all weights and over all batches that it accumulates. This takes the place of the optimizer's step (Algorithm 1),
    and the gradient norm that is logged there is of all weights. SET regrows at random, after the optimizer's step (as
    in the code of RigL's authors). Regrown weights start at zero, with zero moments, and in Adam each has its own bias
    correction. A tensor without a gradient stays as it is. If a weight or gradient is nan or infinite, the mask stays
    and the step is an ordinary one, after which the watch ends the training.

    Args:
        trainer: under its first mask. All its later trainings are changed.
        rule: RIGL or SET.
        seed: of SET's random places, which depend on seed and step alone: a training that is continued draws the same.

    Raises:
        ValueError: the trainer has a setting with which this does not work.
    """

    def __init__(self, trainer: Trainer, rule: str, seed: int):
        self.trainer, self.rule, self.seed = trainer, rule, seed
        self.masking, self.checkpoints = trainer.watch.masking, trainer.checkpoints
        _refuse(trainer, rule)
        self._parameters = {name: named_parameters(trainer.model)[name] for name in trainer.mask}
        self._schedule = MaskSchedule(trainer.args.max_steps)
        self._own_steps: OwnSteps | None = None  # None: the optimizer corrects no bias
        self.checkpoints.writers.append(self._write)
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        self._detach()
        self._schedule = MaskSchedule(state.max_steps)
        if state.max_steps < SHORTEST_TRAINING:
            raise ValueError(
                f"training has {state.max_steps} steps, and the control {self.rule} {needs_steps()}: "
                "train for more, or leave out this control"
            )
        optimizer = inner_optimizer(self.trainer.optimizer)
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            self._own_steps = OwnSteps(self._parameters)
            self._own_steps.attach(optimizer)
            if self.checkpoints.source is not None:
                self._own_steps.load(self.checkpoints.source)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.rule == RIGL and self._schedule.changes_at(state.global_step + 1):
            self.masking.step.show_gradients()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        step = state.global_step + 1
        if self.rule != RIGL or not self._schedule.changes_at(step):
            return
        gradients = self._gradients()
        if self._change(step, gradients, largest(gradients)):
            for parameter in self.trainer.model.parameters():
                parameter.grad = None  # so that the optimizer makes no step
        else:
            self.masking.step.mask_gradients()
            self.masking.exchange(self.masking.mask)  # its hooks mask gradients again

    def on_optimizer_step(self, args, state, control, **kwargs):
        step = state.global_step + 1
        if self.rule == SET and self._schedule.changes_at(step):
            generator = torch.Generator().manual_seed(derived_seed(self.seed, step))
            self._change(step, self._gradients(), at_random(generator))

    def on_train_end(self, args, state, control, **kwargs):
        self._detach()

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.detach() for name, p in self._parameters.items() if p.grad is not None}

    def _change(self, step: int, gradients: Mapping[str, Tensor], grow: Grow) -> bool:
        """Exchange weights of the tensors that have a gradient; False, and nothing is done, if one is not finite."""
        weights = {name: self._parameters[name].detach() for name in gradients}
        before = {name: kept.to(self._parameters[name].device) for name, kept in self.masking.mask.items()}
        if not all(bool(tensor.isfinite().all()) for part in (weights, gradients) for tensor in part.values()):
            return False
        changed = exchange(weights, Mask({name: before[name] for name in weights}), self._schedule.share(step), grow)
        after = Mask({**before, **changed})
        self.masking.exchange(after)
        if self._own_steps is not None:
            self._own_steps.change(inner_optimizer(self.trainer.optimizer), Mask(before), after)
        return True

    def _write(self, folder) -> None:
        if self._own_steps is not None:
            self._own_steps.save(folder)

    def _detach(self) -> None:
        if self._own_steps is not None:
            self._own_steps.detach()
            self._own_steps = None


def refuse_sharding(control: str) -> None:
    """Raise a ValueError if accelerate has started this process to train with shards of the weights."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable) == "true":
            raise ValueError(f"{name} was asked for, and {whole_weights(control)}, or leave out this control")


def _refuse(trainer: Trainer, rule: str) -> None:
    refuse_sharding(rule)
    args, optimizer = trainer.args, trainer.optimizer
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(f"FSDP or DeepSpeed was asked for, and {whole_weights(rule)}")
    given = {"max_steps": args.max_steps, "fp16": args.fp16}
    if optimizer is None:
        given["optim"] = OptimizerNames(args.optim).value
    elif not isinstance(inner_optimizer(optimizer), torch.optim.Adam | torch.optim.AdamW | torch.optim.SGD):
        given["optim"] = type(inner_optimizer(optimizer)).__name__
    _, sentence = unfit_setting(rule, trainer.lottery_config, given)
    if sentence is not None:
        raise ValueError(sentence)
