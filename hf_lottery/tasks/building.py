"""A recipe's `model` section -> a model, by transformers' Auto classes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_lottery.models  # noqa: F401  (registers lenet and its sisters)
from hf_lottery.suggest import did_you_mean, in_brackets


def build(auto_class: Any, model: Any, seed: int, **config: Any) -> PreTrainedModel:
    """The model of a recipe's `model` section: θ_0, the same for the same seed.

    Args:
        auto_class: such as AutoModelForImageClassification.
        model: the section: `name_or_path` (pretrained weights; optional `revision`, `dtype`, `gguf_file`) or
            `architecture` (random ones), and `config` (arguments of the model's config).
        seed: of the random weights: all of them, or a pretrained model's new head.
        config: what the data decide of the config, such as num_labels; the section's own `config` goes before.

    Raises:
        ValueError: an unknown architecture, a config that it does not take, or a model that is not there.
    """
    given = model.config or {}
    if model.name_or_path is None:
        architecture = architecture_config(model.architecture, given, config)
        set_seed(seed)
        return auto_class.from_config(architecture)
    options = {
        "revision": model.revision,
        "dtype": model.dtype,
        "gguf_file": model.gguf_file,
        "device_map": model.device_map,
    }
    options = {name: value for name, value in options.items() if value is not None}
    options.update({**config, **given})
    set_seed(seed)
    try:
        # a head of another size than the data's classes is drawn anew instead of refused
        return auto_class.from_pretrained(
            locate(model.name_or_path), ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    except OSError as error:
        raise ValueError(
            f"model.name_or_path is {model.name_or_path!r}, which is no folder with a model and could not be had from "
            "the Hub: check the name and the network, or give a local folder with model.name_or_path=FOLDER"
        ) from error


def architecture_config(architecture: str, given: dict[str, Any], defaults: dict[str, Any]) -> PretrainedConfig:
    """The config of a model type, ours or transformers', with the arguments that a recipe gives over `defaults`.

    Raises:
        ValueError: there is no such model type, or it does not take such an argument.
    """
    if architecture not in CONFIG_MAPPING:
        raise ValueError(
            f"model.architecture is {architecture!r}; it must be a model type of transformers, such as vit, or one of "
            f"hf_lottery's{in_brackets(architecture, CONFIG_MAPPING)}"
        )
    # a config keeps arguments that it does not know, so a misspelt one would do nothing
    config_class = CONFIG_MAPPING[architecture]
    known = {*config_class().to_dict(), *config_class.attribute_map, "num_labels", "attn_implementation"}
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known, otherwise=f"see the arguments of {config_class.__name__}")
            raise ValueError(f"model.config.{key} is no argument of the architecture {architecture}: {hint}")
    try:
        return AutoConfig.for_model(architecture, **{**defaults, **given})
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.config does not fit the architecture {architecture}: {error}") from error


def locate(name_or_path: str) -> str:
    """A model's folder or Hub id; `package:NAME/FOLDER` is a folder of an installed Python package.

    Raises:
        ValueError: the package is not installed, or has no such folder.
    """
    if not name_or_path.startswith("package:"):
        return name_or_path
    package, _, folder = name_or_path.removeprefix("package:").partition("/")
    if not package.isidentifier():  # a dotted name would be imported to be found
        raise ValueError(f"model.name_or_path is {name_or_path!r}; a package is named like package:NAME/FOLDER")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.name_or_path is {name_or_path!r}, but the package {package} is not installed: "
            f"pip install {package.replace('_', '-')}, or give a folder or a Hub id"
        )
    root = Path(spec.submodule_search_locations[0]).resolve()
    path = (root / folder).resolve()
    if not path.is_dir() or not path.is_relative_to(root):
        raise ValueError(f"model.name_or_path is {name_or_path!r}, but the package {package} has no folder {folder!r}")
    return str(path)
