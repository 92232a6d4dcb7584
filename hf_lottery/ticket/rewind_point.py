"""RewindPoint: the weights and buffers of step k, θ_k, and putting them back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hf_lottery.distributed.processes import (
    full,
    full_shape,
    named_buffers,
    named_parameters,
    named_tensors,
    not_persistent,
    write,
)
from hf_lottery.files import write_tensors
from hf_lottery.sealed import readable


@dataclass
class RewindPoint:
    """θ_k: every trainable parameter and every buffer of a model at step k.

    Parameters that are frozen at step k (a LoRA's base model) are not copied, because training does not change them;
    if something else does, such as a moving average, that is not undone. Tied parameters are copied once, under the
    name that `named_parameters` gives them.

    Args:
        step: k, in optimizer steps; 0 is the initial (for a pretrained model the pretrained) value.
        tensors: parameter or buffer name -> value, on the CPU, in the model's own dtypes.
        caches: names of the buffers that no checkpoint holds, because the model computes them itself.
    """

    step: int
    tensors: dict[str, Tensor]
    caches: frozenset[str] = frozenset()

    @classmethod
    def capture(cls, model: nn.Module, step: int = 0, keep: bool = True) -> RewindPoint:
        """Copy θ_k out of `model`; later training of the model does not change the copy.

        Args:
            model: if its weights are sharded, every rank must call this; they are gathered one at a time.
            step: k.
            keep: False for ranks that only take part in the gathering; their result is empty.
        """
        tensors = {}
        for name, tensor in _state(model).items():
            whole = full(tensor)
            if keep:
                tensors[name] = whole.cpu().clone()
        return cls(step, tensors, frozenset(not_persistent(model) & tensors.keys()))

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Copy θ_k back into `model`, in place: its tensors keep their identity, device and dtype.

        A buffer that no checkpoint holds and that has grown, as rotary caches do, stays as it is.

        Raises:
            ValueError: a tensor of the rewind point is missing from the model, or has another shape.
        """
        state = named_tensors(model)  # also what has been frozen since
        tensors = self._without_caches_that_changed(state, not_persistent(model))
        for name, value in tensors.items():
            if name not in state:
                raise ValueError(f"the rewind point holds '{name}', which is not a weight or buffer of this model")
            if full_shape(state[name]) != value.shape:
                raise ValueError(
                    f"'{name}' has shape {tuple(full_shape(state[name]))} in this model "
                    f"and {tuple(value.shape)} in the rewind point"
                )
        for name, value in tensors.items():
            write(state[name], value)

    def _without_caches_that_changed(self, state: Mapping[str, Tensor], caches: set[str]) -> dict[str, Tensor]:
        caches = caches | self.caches
        return {
            name: value
            for name, value in self.tensors.items()
            if name not in caches or (name in state and full_shape(state[name]) == value.shape)
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write θ_k to a safetensors file. After an error the file is as it was before."""
        tensors = {name: value.contiguous() for name, value in self.tensors.items()}
        caches = {"caches": json.dumps(sorted(self.caches))} if self.caches else {}
        write_tensors(path, tensors, {"format": "pt", "step": str(self.step), **caches})

    @classmethod
    def load(cls, path: str | os.PathLike) -> RewindPoint:
        """Read what `save` wrote.

        Raises:
            DamagedFile: it is not a rewind point's file, or not all of it.
        """
        with readable(path), safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(int(facts.get("step", 0)), tensors, frozenset(json.loads(facts.get("caches", "[]"))))


def _state(model: nn.Module) -> Mapping[str, Tensor]:
    """Name -> live tensor: the trainable parameters (tied ones once) and all buffers, persistent or not."""
    state = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
    state.update(named_buffers(model))
    return state
