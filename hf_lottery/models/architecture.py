"""Checks a model type and the arguments of its config: transformers accepts a misspelt argument without an error."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_lottery.suggest import did_you_mean

# arguments that every config takes, but that its signature does not name
_UNNAMED = ("num_labels", "attn_implementation", "rope_theta", "rope_scaling")
# A config makes lists as long as its numbers of layers and classes; lengths of texts and θ of RoPE may be larger.
_MOST = 1_000_000
_MOST_OF_LENGTHS = 10**9
_LENGTH = re.compile(r"position|theta|context|length|rope")


def architecture_problems(architecture: str, config: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """What is wrong with the keys `architecture` and `config` of a recipe's section `model`.

    Args:
        architecture: a model type, of transformers or ours.
        config: arguments of its config class, by name.

    Returns:
        (path below `model`, sentence) for an unknown model type, for each unknown argument, or for what the config
        class itself refuses.
    """
    if architecture not in CONFIG_MAPPING:
        hint = did_you_mean(architecture, CONFIG_MAPPING, otherwise="such as lenet or vit")
        sentence = f"model.architecture is {architecture!r}, which is no model type of transformers or hf_lottery; "
        return [(("architecture",), sentence + hint)]
    config_class = CONFIG_MAPPING[architecture]
    known = _arguments(config_class)
    if unknown := [key for key in config if key not in known]:
        return [(("config", key), _unknown_argument(key, known, config_class.__name__)) for key in unknown]
    if large := [problem for key, value in config.items() for problem in too_large(value, ("config", key))]:
        return large
    try:
        config_class(**copy.deepcopy(config))  # some change what they are given
    except Exception as error:  # hundreds of classes, each refuses a wrong value in its own way
        text = " ".join(str(error).split()) or "it is not possible"
        if not isinstance(error, (ValueError, TypeError)):
            text = f"{type(error).__name__}: {text}"
        named = [key for key in config if re.search(rf"\b{re.escape(key)}\b", text)]
        path = ("config", *named[:1])
        return [(path, f"{'.'.join(('model', *path))}: {config_class.__name__} says: {text}")]
    return []


def _arguments(config_class: type[PretrainedConfig]) -> list[str]:
    """The named arguments of a config class and of its base classes."""
    names = {*_UNNAMED, *config_class.attribute_map}
    for cls in config_class.__mro__:
        parameters = inspect.signature(cls.__init__).parameters.values() if "__init__" in vars(cls) else ()
        names.update(parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD)
    return sorted(names - {"self", "args", "kwargs", "transformers_version"})


def too_large(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """(path below `model`, sentence) for each whole number of a config's argument that no model has."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [problem for key, below in items for problem in too_large(below, (*path, str(key)))]
    most = _MOST_OF_LENGTHS if _LENGTH.search(".".join(path[1:])) else _MOST
    if not isinstance(value, int) or abs(value) <= most:
        return []
    return [(path, f"{'.'.join(('model', *path))} is {value}; at most {most:,} fits into a machine's memory")]


def _unknown_argument(key: str, known: list[str], owner: str) -> str:
    hint = did_you_mean(key, known, otherwise=f"see {owner}'s documentation for its arguments")
    return f"model.config.{key} is not an argument of {owner}; {hint}"
