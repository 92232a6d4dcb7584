"""Which weights may be pruned, and the pruning rate of each, by patterns of module names as in PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_lottery.pruning.embeddings import token_embeddings
from hf_lottery.pruning.reparametrised import Reparametrised, module_of, reparametrised, weight_of
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
    nn.RNNBase,  # LSTM, GRU and RNN: so are weight_ih_l0, weight_hh_l0, …
    nn.RNNCellBase,
    Conv1D,
)
Patterns = list[str] | str | None
_LISTED = 4  # parameters that a message names


def prunable(
    model: nn.Module,
    target_modules: Patterns = None,
    exclude_modules: Patterns = None,
    prune_embeddings: str | None = None,
) -> dict[str, nn.Parameter]:
    """The parameters of `model` that a ticket search may prune, by name, tied ones once.

    By default the weights of linear, convolution and recurrent layers that are trained; not biases, norms, embeddings,
    or an output layer whose weight is tied to an embedding. These are included if target_modules names the module
    itself, or the parameter by its full name. Weights that a module computes from others (`weight_norm`) are left out
    where the model's class makes them so.

    Args:
        model: any module; for a PEFT model the adapter's trainable weights are what can be pruned.
        target_modules: a list of names or name endings ("q_proj" matches every module that ends in ".q_proj", and
            what is inside it), or one regular expression for the whole name. None: no restriction.
        exclude_modules: modules that are not pruned, in the same form.
        prune_embeddings: "rows" adds the token embeddings, also where target_modules does not match them.

    Raises:
        ValueError: a pattern matches nothing, or only weights that cannot be pruned (frozen, quantised,
            reparametrised, or not named in full), or nothing is left to prune.
    """
    parameters = dict(model.named_parameters())
    _refuse_second_names(model, {"target_modules": target_modules, "exclude_modules": exclude_modules}, parameters)
    require_matches("target_modules", target_modules, parameters)
    require_matches("exclude_modules", exclude_modules, parameters)
    computed = reparametrised(model)
    wanted = usual_weights(model)
    if target_modules is not None:
        wanted = _targeted(parameters, wanted | computed.keys(), target_modules)
    if prune_embeddings is not None:
        wanted.add(token_embeddings(model))
    if exclude_modules is not None:
        wanted = {name for name in wanted if not inside(name, exclude_modules)}
    wanted -= _left_as_they_are(computed, wanted, target_modules)
    chosen = {name: p for name, p in parameters.items() if name in wanted and _is_trained(p)}
    refused = {name: p for name, p in parameters.items() if name in wanted and not _is_trained(p)}
    _refuse_untrained_targets(target_modules, chosen, refused)
    _refuse_empty_targets(target_modules, chosen, parameters, exclude_modules)
    if not chosen:
        raise ValueError(f"no weight of {type(model).__name__} is left to prune{_why_none(refused, computed)}")
    return chosen


def usual_weights(model: nn.Module) -> set[str]:
    """Names of the weights of linear, convolution and recurrent layers that no embedding shares."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if isinstance(module_of(model, name), LINEAR_MODULES)
        and "weight" in weight_of(name)
        and parameter.dim() >= 2
        and id(parameter) not in embeddings
        # an adapter's mask is over A and B; the modules that PEFT saves whole are trained without a mask
        and ".modules_to_save." not in name
    }


def _targeted(names: Iterable[str], usual: set[str], patterns: list[str] | str) -> set[str]:
    """The names that a pattern asks for, and the `usual` names inside a module that it matches."""
    return {name for name in names if _asked_for(name, patterns) or (name in usual and inside(name, patterns))}


def _is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.is_floating_point()


def _describe(name: str, parameter: nn.Parameter) -> str:
    """A parameter that is not trained, and why: 'name' (frozen)."""
    return f"'{name}' ({'frozen' if parameter.is_floating_point() else f'quantised, {parameter.dtype}'})"


def _left_as_they_are(computed: Mapping[str, Reparametrised], wanted: set[str], target_modules: Patterns) -> set[str]:
    """The parts of reparametrised weights that a mask leaves out, because the model's class makes them so.

    Raises:
        ValueError: another such weight is wanted, or target_modules asks for one of these and for nothing else.
    """
    usual = {name: weight for name, weight in computed.items() if name in wanted}
    for name, weight in usual.items():
        named = any(
            _matches(weight.name, entry)
            or _matches(weight.module, entry)
            or (inside(name, entry) and not any(inside(other, entry) for other in wanted - computed.keys()))
            for _, entry in _one_by_one(target_modules)
        )
        if named or not weight.own:
            raise ValueError(weight.refusal())
    return set(usual)


def _refuse_second_names(
    model: nn.Module, settings: Mapping[str, Patterns], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Raise a ValueError for a pattern that matches nothing but another name of a tied parameter."""
    first = {id(parameter): name for name, parameter in parameters.items()}
    second = {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in parameters
    }
    for label, patterns in settings.items():
        for pattern, entry in _one_by_one(patterns):
            tied = next((name for name in second if inside(name, entry)), None)
            if tied is not None and not any(inside(name, entry) for name in parameters):
                raise ValueError(
                    f"{label}: '{pattern}' is '{tied}', which is tied to '{second[tied]}': name that, or leave it out"
                )


def _refuse_untrained_targets(
    target_modules: Patterns, chosen: Mapping[str, nn.Parameter], refused: Mapping[str, nn.Parameter]
) -> None:
    """Raise a ValueError for a pattern that matches weights that are not trained, and no other."""
    for pattern, entry in _one_by_one(target_modules):
        untrained = [_describe(name, parameter) for name, parameter in refused.items() if inside(name, entry)]
        if untrained and not any(inside(name, entry) for name in chosen):
            raise ValueError(
                f"target_modules: '{pattern}' asks for weights that are not trained, such as {untrained[0]}; over a "
                "frozen base, in 4 bits or not, only the adapter has a mask: leave target_modules out"
            )


def _refuse_empty_targets(
    target_modules: Patterns,
    chosen: Mapping[str, nn.Parameter],
    parameters: Mapping[str, nn.Parameter],
    exclude_modules: Patterns,
) -> None:
    """Raise a ValueError for a pattern that matches modules of which no weight is pruned; it lists what they hold."""
    for pattern, entry in _one_by_one(target_modules):
        if any(inside(name, entry) for name in chosen):
            continue
        held = {name: p for name, p in parameters.items() if inside(name, entry)}
        left = {name: p for name, p in held.items() if exclude_modules is None or not inside(name, exclude_modules)}
        if not left:
            raise ValueError(
                f"target_modules: '{pattern}' matches only what exclude_modules leaves out, such as "
                f"'{next(iter(held))}': take it out of one of the two"
            )
        listed = [f"'{name}' {list(parameter.shape)}" for name, parameter in list(left.items())[:_LISTED]]
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        largest = max(left, key=lambda name: left[name].numel())
        raise ValueError(
            f"target_modules: '{pattern}' matches no linear, convolution or recurrent layer, and holds the parameters "
            f"{', '.join(listed)}{more}: to prune one, give its full name, such as '{largest}'"
        )


def _why_none(refused: Mapping[str, nn.Parameter], computed: Mapping[str, Reparametrised]) -> str:
    if refused:
        return (
            f"; what matches cannot be trained, such as {_describe(*next(iter(refused.items())))}. Set target_modules."
        )
    if computed:
        return f"; {next(iter(computed.values())).refusal()}"
    return ". Set target_modules."


def match_rates(
    rates: Mapping[str, float],
    names: Iterable[str],
    label: str = "pruning_rates",
    others: Iterable[str] = (),
) -> dict[str, float]:
    """Pattern -> rate becomes parameter name -> rate; of several patterns that match, the last one is used.

    Args:
        rates: pattern -> rate.
        names: of the weights that are pruned.
        label: the setting's name, for messages.
        others: names of all the model's parameters, for messages.

    Raises:
        ValueError: a pattern matches none of `names`; the message gives the nearest.
    """
    names, others = list(names), list(others)
    result = {}
    for pattern, rate in rates.items():
        unpruned = next((name for name in others if inside(name, [pattern])), None)
        if unpruned is not None and not any(inside(name, [pattern]) for name in names):
            raise ValueError(
                f"{label}: '{pattern}' matches no weight that is pruned, only others such as '{unpruned}': leave it "
                "out, or name these in target_modules too"
            )
        require_matches(label, [pattern], names)
        result.update({name: rate for name in names if inside(name, [pattern])})
    return result


def require_matches(label: str, patterns: Patterns, names: Iterable[str]) -> None:
    """Raise a ValueError for the first pattern that matches no module and no parameter, naming the nearest."""
    names = list(names)
    for pattern, entry in _one_by_one(patterns):
        if any(inside(name, entry) for name in names):
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


def inside(name: str, patterns: list[str] | str) -> bool:
    """Whether a pattern matches a parameter, or a module that contains it."""
    return any(_matches(path, patterns) for path in _paths(name))


def _asked_for(name: str, patterns: list[str] | str) -> bool:
    """Whether a pattern names this very parameter, or the module whose weight it is."""
    module, _, leaf = name.rpartition(".")
    return _matches(name, patterns) or ("weight" in leaf and bool(module) and _matches(module, patterns))
