"""Checks a model type and the arguments of its config: transformers accepts a misspelt argument without an error."""

from __future__ import annotations

import inspect
import re
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_lottery.suggest import did_you_mean

# arguments that every config takes, but that its signature does not name
_UNNAMED = ("num_labels", "attn_implementation", "rope_theta", "rope_scaling")


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
    try:
        config_class(**config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        text = " ".join(str(error).split())
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


def _unknown_argument(key: str, known: list[str], owner: str) -> str:
    hint = did_you_mean(key, known, otherwise=f"see {owner}'s documentation for its arguments")
    return f"model.config.{key} is not an argument of {owner}; {hint}"
