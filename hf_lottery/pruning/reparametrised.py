"""Reparametrised weights: computed by their module from other tensors, so that a mask of these is no mask of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from transformers import PreTrainedModel

_CONTAINER = re.compile(r"(?:^|\.)parametrizations\.(?P<weight>[^.]+)\.")  # where torch keeps what a weight is made of
WEIGHT_NORM, PRUNED, PARAMETRISED = "weight_norm", "torch.nn.utils.prune", "a parametrization"


@dataclass(frozen=True)
class Reparametrised:
    """A weight that its module computes anew for every forward.

    Args:
        module: name of the module; empty for the model itself.
        weight: name of the weight in it.
        kind: WEIGHT_NORM, PRUNED or PARAMETRISED.
        remedy: the call that makes the weight a plain parameter again; None: there is none.
        own: whether the model's class makes it so itself.
    """

    module: str
    weight: str
    kind: str
    remedy: str | None
    own: bool = False

    @property
    def name(self) -> str:
        """Module and weight, as the parameter would be called."""
        return f"{self.module}.{self.weight}" if self.module else self.weight

    def refusal(self) -> str:
        """One sentence: why this weight cannot be pruned, and what to do."""
        what = {
            WEIGHT_NORM: "is computed by weight_norm, and is nan where the whole direction of a weight is pruned",
            PRUNED: "has a mask of torch.nn.utils.prune, whose pruned weights would be counted as kept",
            PARAMETRISED: "is computed by a parametrization from other tensors, and a mask of these is none of it",
        }[self.kind]
        call = "make it a plain parameter" if self.remedy is None else f"call {self.remedy}"
        zeros = ', with start_from="zeros" to keep its zeros,' if self.kind == PRUNED else ""
        return f"'{self.name}' {what}: {call}{zeros} before the trainer is made, or name it in exclude_modules"


def reparametrised(model: nn.Module) -> dict[str, Reparametrised]:
    """The trained parameters from which modules compute a weight of which a mask would not be exact.

    Weights under spectral_norm are left out: their zeros are zeros of the weight that is computed.

    Returns:
        name of the parameter -> the weight that it is a part of.
    """
    found = {name: weight for name, weight in _of_modules(model) if model.get_parameter(name).requires_grad}
    if any(weight.kind != PRUNED for weight in found.values()):
        own = _of_class(model)
        found = {
            name: Reparametrised(w.module, w.weight, w.kind, w.remedy, own=w.kind != PRUNED and name in own)
            for name, w in found.items()
        }
    return found


def module_of(model: nn.Module, name: str) -> nn.Module:
    """The module that computes with the parameter `name`: of a parametrised weight the layer, not its container."""
    container = _CONTAINER.search(name)
    return model.get_submodule(name[: container.start()] if container else name.rpartition(".")[0])


def weight_of(name: str) -> str:
    """What a parameter is called in its module; of "fc.parametrizations.weight.original" that is weight."""
    container = _CONTAINER.search(name)
    return container["weight"] if container else name.rpartition(".")[2]


def _of_modules(model: nn.Module) -> Iterator[tuple[str, Reparametrised]]:
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            for weight, parts in module.parametrizations.items():
                if all(isinstance(part, _SpectralNorm) for part in parts):
                    continue
                kind = WEIGHT_NORM if all(isinstance(part, _WeightNorm) for part in parts) else PARAMETRISED
                call = f"torch.nn.utils.parametrize.remove_parametrizations({_call(path)}, '{weight}')"
                for name, _ in parts.named_parameters():
                    yield f"{start}parametrizations.{weight}.{name}", Reparametrised(path, weight, kind, call)
        yield from _by_hooks(path, module)


def _by_hooks(path: str, module: nn.Module) -> Iterator[tuple[str, Reparametrised]]:
    """The older way: hooks compute a plain attribute, such as `weight`, from `weight_orig`, or `weight_g` and `_v`."""
    start = f"{path}." if path else ""
    computed = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
    for weight in computed:
        parts = [name for name, _ in module.named_parameters(recurse=False) if name.startswith(f"{weight}_")]
        hooks = [hook for hook in module._forward_pre_hooks.values() if _computes(hook, weight)]
        if hooks and all(isinstance(hook, SpectralNorm) for hook in hooks):
            continue
        kind, remedy = PARAMETRISED, None
        if any(isinstance(hook, BasePruningMethod) for hook in hooks):
            kind, remedy = PRUNED, f"torch.nn.utils.prune.remove({_call(path)}, '{weight}')"
        elif any(isinstance(hook, WeightNorm) for hook in hooks):
            kind, remedy = WEIGHT_NORM, f"torch.nn.utils.remove_weight_norm({_call(path)}, '{weight}')"
        for name in parts:
            yield f"{start}{name}", Reparametrised(path, weight, kind, remedy)


def _computes(hook: object, weight: str) -> bool:
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name == weight
    return isinstance(hook, (WeightNorm, SpectralNorm)) and hook.name == weight


def _call(path: str) -> str:
    return f"model.get_submodule('{path}')" if path else "model"


def _of_class(model: nn.Module) -> set[str]:
    """The names that `reparametrised` finds in a model of this class and config as it is made."""
    if not isinstance(model, PreTrainedModel):
        return set()
    try:
        with torch.device("meta"):
            fresh = type(model)(copy.deepcopy(model.config))
    except Exception:  # of hundreds of classes, some cannot be made in this way; then nothing is known
        return set()
    return {name for name, _ in _of_modules(fresh)}
