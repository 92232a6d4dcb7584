"""MaskedStep: an optimizer step that cannot see or move a pruned weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hf_lottery.distributed.processes import local, shard_like
from hf_lottery.mask import Mask


class MaskedStep:
    """Makes any torch optimizer train the subnetwork m ⊙ θ instead of θ.

    Gradients of pruned weights become zero as backward produces them, before clipping, so that the gradient norm, the
    clipped gradients and the optimizer's moments are those of the smaller network. After the step pruned weights are
    written again, because some optimizers mix coordinates or decay weights.

    Args:
        parameters: name -> live parameter (a DTensor's mask is sharded like it).
        mask: name -> bool tensor, True = kept; every name must be in `parameters`.
        pruned_values: name -> value that pruned weights hold, shaped as the parameter. None: zero.

    Raises:
        ValueError: the mask names a parameter that is not there, or has another shape.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mask: Mask,
        pruned_values: Mapping[str, Tensor] | None = None,
    ):
        self._entries: list[tuple[nn.Parameter, Tensor, Tensor | None]] = []
        self._names: list[str] = []  # of the entries
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._gradient_handles: list[torch.utils.hooks.RemovableHandle] = []
        for name, kept in mask.items():
            if name not in parameters:
                raise ValueError(f"the mask is over '{name}', which is not a parameter of this model")
            parameter = parameters[name]
            if parameter.shape != kept.shape:
                raise ValueError(
                    f"the mask of '{name}' has shape {tuple(kept.shape)}, the parameter {tuple(parameter.shape)}"
                )
            if bool(kept.all()):
                continue  # nothing is pruned
            kept = shard_like(kept, parameter)  # no copy if the mask is whole and on the parameter's device
            if kept.numel() < parameter.numel():
                kept = kept.clone()  # a view of the whole would keep all of it
            value = None
            if pruned_values is not None:
                value = _bits(shard_like(pruned_values[name].to(parameter.dtype), parameter)).mul(~kept)
            self._entries.append((parameter, kept, value))
            self._names.append(name)

    def attach(self, optimizer: torch.optim.Optimizer, moments: bool = True) -> None:
        """Mask weights and moments now, and gradients and weights at every step until `detach`.

        Args:
            optimizer: not wrapped.
            moments: False: keep its state, which is of a training under this very mask.
        """
        self.mask_weights()
        if moments:
            self.mask_moments(optimizer)
        for parameter, kept, _ in self._entries:
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(_GradientMask(kept))
                self._gradient_handles.append(handle)
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.mask_weights()))

    def detach(self) -> None:
        """Remove every hook."""
        self.show_gradients()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def show_gradients(self) -> None:
        """From now on backward gives pruned weights their gradients too, which a step must not see."""
        for handle in self._gradient_handles:
            handle.remove()
        self._gradient_handles.clear()

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights that are there now."""
        for parameter, kept, _ in self._entries:
            _GradientMask(kept)(parameter)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Write zero (or the given value) into every pruned weight, in place."""
        for parameter, kept, value in self._entries:
            weights = _bits(local(parameter)).mul_(kept)
            if value is not None:
                weights.bitwise_or_(value)

    def pruned(self) -> Iterator[tuple[str, nn.Parameter, Tensor, Tensor]]:
        """Each pruned tensor: name, parameter, this rank's part of its mask, and what its pruned weights must be."""
        for name, (parameter, kept, value) in zip(self._names, self._entries, strict=True):
            zero = torch.zeros((), dtype=parameter.dtype, device=kept.device)
            yield name, parameter, kept, zero if value is None else value.view(parameter.dtype)

    @torch.no_grad()
    def mask_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero the pruned coordinates of the optimizer's state; drop state that has no such coordinates.

        State shaped as its parameter (momentum, Adam's moments) is masked. Anything else with more than one entry
        (factored or 8-bit moments) mixes coordinates, so the whole state of that parameter is dropped.
        """
        for parameter, kept, _ in self._entries:
            state = optimizer.state.get(parameter, {})
            tensors = {key: entry for key, entry in state.items() if torch.is_tensor(entry) and entry.numel() > 1}
            if any(e.shape != parameter.shape or not e.is_floating_point() for e in tensors.values()):
                optimizer.state.pop(parameter)
                continue
            for entry in tensors.values():
                _bits(local(entry)).mul_(kept)


class _GradientMask:
    """A post-accumulate-grad hook: zero where pruned. The hook must return None."""

    def __init__(self, kept: Tensor):
        self.kept = kept

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            _bits(local(parameter.grad)).mul_(self.kept)


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Drop an optimizer's whole state: its next step is a first step."""
    optimizer.state = defaultdict(dict)


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer inside Accelerate's wrapper, which cannot have hooks itself."""
    from accelerate.optimizer import AcceleratedOptimizer

    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers. Times a bool, all bits stay or all become 0: unlike a product of floats this makes
    nan and inf 0, and never −0. On a CPU it takes at most half the time of masked_fill_."""
    return tensor.view(_INTEGERS[tensor.element_size()])
