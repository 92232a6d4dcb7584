"""Which weights may be pruned, and the pruning rate of each, by patterns of module names as in PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_lottery.pruning.embeddings import token_embeddings
from hf_lottery.suggest import nearest

LINEAR_MODULES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,  # its in_proj_weight is a linear layer's weight without the layer
    Conv1D,
)
Patterns = list[str] | str | None


def prunable(
    model: nn.Module,
    target_modules: Patterns = None,
    exclude_modules: Patterns = None,
    prune_embeddings: str | None = None,
) -> dict[str, nn.Parameter]:
    """The parameters of `model` that a ticket search may prune, by name, tied ones once.

    By default the weights of linear and convolution layers that are trained; not biases, norms, embeddings, or an
    output layer whose weight is tied to an embedding. These are included if target_modules names the module itself,
    or the parameter by its full name.

    Args:
        model: any module; for a PEFT model the adapter's trainable weights are what can be pruned.
        target_modules: a list of names or name endings ("q_proj" matches every module that ends in ".q_proj", and
            what is inside it), or one regular expression for the whole name. None: no restriction.
        exclude_modules: modules that are not pruned, in the same form.
        prune_embeddings: "rows" adds the token embeddings, also where target_modules does not match them.

    Raises:
        ValueError: a pattern matches nothing, or only weights that cannot be pruned (frozen, quantised), or
            nothing is left to prune.
    """
    parameters = dict(model.named_parameters())
    require_matches("target_modules", target_modules, parameters)
    require_matches("exclude_modules", exclude_modules, parameters)
    wanted = _linear_weights(model, parameters)
    if target_modules is not None:
        wanted = _targeted(parameters, wanted, target_modules)
    if prune_embeddings is not None:
        wanted.add(token_embeddings(model))
    if exclude_modules is not None:
        wanted = {name for name in wanted if not _inside(name, exclude_modules)}
    chosen = {name: p for name, p in parameters.items() if name in wanted and _is_trained(p)}
    refused = {name: p for name, p in parameters.items() if name in wanted and not _is_trained(p)}
    _refuse_untrained_targets(target_modules, chosen, refused)
    if not chosen:
        why = f"; what matches cannot be trained, such as {_describe(*next(iter(refused.items())))}" if refused else ""
        raise ValueError(f"no weight of {type(model).__name__} is left to prune{why}. Set target_modules.")
    return chosen


def _linear_weights(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """Names of the weights of linear and convolution layers that no embedding shares."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, parameter in parameters.items()
        if isinstance(model.get_submodule(name.rpartition(".")[0]), LINEAR_MODULES)
        and "weight" in name.rpartition(".")[2]
        and parameter.dim() >= 2
        and id(parameter) not in embeddings
        # an adapter's mask is over A and B; the modules that PEFT saves whole are trained without a mask
        and ".modules_to_save." not in name
    }


def _targeted(names: Iterable[str], usual: set[str], patterns: list[str] | str) -> set[str]:
    """The names that a pattern asks for, and the `usual` names inside a module that it matches."""
    return {name for name in names if _asked_for(name, patterns) or (name in usual and _inside(name, patterns))}


def _is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.is_floating_point()


def _describe(name: str, parameter: nn.Parameter) -> str:
    """A parameter that is not trained, and why: 'name' (frozen)."""
    return f"'{name}' ({'frozen' if parameter.is_floating_point() else f'quantised, {parameter.dtype}'})"


def _refuse_untrained_targets(
    target_modules: Patterns, chosen: Mapping[str, nn.Parameter], refused: Mapping[str, nn.Parameter]
) -> None:
    """Raise a ValueError for a pattern that matches weights that are not trained, and no other."""
    for pattern, entry in _one_by_one(target_modules):
        untrained = [_describe(name, parameter) for name, parameter in refused.items() if _inside(name, entry)]
        if untrained and not any(_inside(name, entry) for name in chosen):
            raise ValueError(
                f"target_modules: '{pattern}' asks for weights that are not trained, such as {untrained[0]}; over a "
                "frozen base, in 4 bits or not, only the adapter has a mask: leave target_modules out"
            )


def match_rates(rates: Mapping[str, float], names: Iterable[str], label: str = "pruning_rates") -> dict[str, float]:
    """Pattern -> rate becomes parameter name -> rate; of several patterns that match, the last one is used.

    Raises:
        ValueError: a pattern matches none of `names`; the message gives the nearest.
    """
    names = list(names)
    result = {}
    for pattern, rate in rates.items():
        require_matches(label, [pattern], names)
        result.update({name: rate for name in names if _inside(name, [pattern])})
    return result


def require_matches(label: str, patterns: Patterns, names: Iterable[str]) -> None:
    """Raise a ValueError for the first pattern that matches no module and no parameter, naming the nearest."""
    names = list(names)
    for pattern, entry in _one_by_one(patterns):
        if any(_inside(name, entry) for name in names):
            continue
        modules = {path for name in names for path in _paths(name)}
        endings = {path.rpartition(".")[2] for path in modules} | modules
        close = nearest(pattern, sorted(endings), cutoff=0.0)
        hint = f"; the nearest name is '{close}'" if close else ""
        raise ValueError(f"{label}: '{pattern}' matches no module{hint}")


def _one_by_one(patterns: Patterns) -> list[tuple[str, list[str] | str]]:
    """(pattern, the argument that holds this pattern alone), for messages about one pattern."""
    if patterns is None or isinstance(patterns, str):
        return [] if patterns is None else [(patterns, patterns)]
    return [(pattern, [pattern]) for pattern in patterns]


def _paths(name: str) -> list[str]:
    """A parameter's name and those of the modules that contain it: a.b.weight -> a, a.b, a.b.weight."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _matches(path: str, patterns: list[str] | str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == pattern or path.endswith("." + pattern) for pattern in patterns)


def _inside(name: str, patterns: list[str] | str) -> bool:
    return any(_matches(path, patterns) for path in _paths(name))


def _asked_for(name: str, patterns: list[str] | str) -> bool:
    """Whether a pattern names this very parameter, or the module whose weight it is."""
    module, _, leaf = name.rpartition(".")
    return _matches(name, patterns) or ("weight" in leaf and bool(module) and _matches(module, patterns))
