"""Checks `model.architecture` and `model.config`: transformers' configs keep a misspelt argument without a word."""

from __future__ import annotations

import inspect
import re

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_lottery.models  # noqa: F401 - makes our model types known to transformers
from hf_lottery.recipe.errors import unknown_key
from hf_lottery.recipe.sections import ModelSection
from hf_lottery.recipe.yaml import Keys
from hf_lottery.suggest import did_you_mean

# arguments that configs take without naming them
_UNNAMED = ("num_labels", "attn_implementation", "rope_theta", "rope_scaling")


def check_architecture(model: ModelSection) -> list[tuple[Keys, str]]:
    """(path, sentence) for an unknown model type, and for each argument that its config does not take."""
    if model.architecture is None:
        return []
    if model.architecture not in CONFIG_MAPPING:
        hint = did_you_mean(model.architecture, CONFIG_MAPPING, otherwise="such as lenet or vit")
        sentence = (
            f"model.architecture is {model.architecture!r}, which is no model type of transformers or ours; {hint}"
        )
        return [(("model", "architecture"), sentence)]
    config_class = CONFIG_MAPPING[model.architecture]
    known = _arguments(config_class)
    unknown = [key for key in model.config if key not in known]
    if unknown:
        paths = [("model", "config", key) for key in unknown]
        return [(path, unknown_key(path, known, config_class.__name__)) for path in paths]
    try:
        config_class(**model.config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        text = " ".join(str(error).split())
        named = [key for key in model.config if re.search(rf"\b{re.escape(key)}\b", text)]
        path = ("model", "config", *named[:1])
        return [(path, f"{'.'.join(path)}: {config_class.__name__} says: {text}")]
    return []


def _arguments(config_class: type[PretrainedConfig]) -> list[str]:
    """What a config can be made with: the named arguments of its class and of those it builds on."""
    names = {*_UNNAMED, *config_class.attribute_map}
    for cls in config_class.__mro__:
        parameters = inspect.signature(cls.__init__).parameters.values() if "__init__" in vars(cls) else ()
        names.update(parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD)
    return sorted(names - {"self", "args", "kwargs", "transformers_version"})
