"""From a recipe's section `model` to a model, with transformers' Auto classes."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, set_seed

from hf_lottery.models.architecture import architecture_problems
from hf_lottery.suggest import did_you_mean
from hf_lottery.task_records import TASKS


def build(task: str, model: Any, seed: int, **config: Any) -> PreTrainedModel:
    """The model of a recipe's section `model`, at θ_0. The same seed gives the same weights.

    Args:
        task: name of the task; its record names the Auto class.
        model: the section: `name_or_path` (pretrained weights; optional `revision`, `dtype`, `gguf_file`) or
            `architecture` (random weights), and `config` (arguments of the model's config).
        seed: for the random weights: all of them, or those of a pretrained model's new head.
        config: arguments that follow from the data, such as num_labels. The section's own `config` overrides them.

    Raises:
        ValueError: an unknown architecture, a config argument that it refuses, or a model that is not found.
    """
    auto_class = TASKS[task].auto()
    given = model.config or {}
    if model.name_or_path is None:
        architecture = architecture_config(model.architecture, given, config)
        require_model_of_task(task, architecture)
        set_seed(seed)
        return auto_class.from_config(architecture, trust_remote_code=False)
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
        # a head whose size is not the number of classes gets new random weights, instead of an error
        return auto_class.from_pretrained(
            locate(model.name_or_path), ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    except OSError as error:
        raise ValueError(model_not_found(model.name_or_path)) from error


def architecture_config(architecture: str, given: dict[str, Any], defaults: dict[str, Any]) -> PretrainedConfig:
    """The config of a model type, ours or transformers'.

    Args:
        architecture: the model type.
        given: arguments from the recipe.
        defaults: arguments used where the recipe gives none.

    Raises:
        ValueError: there is no such model type, or its config refuses an argument.
    """
    for _, sentence in architecture_problems(architecture, given):
        raise ValueError(sentence)
    try:
        return AutoConfig.for_model(architecture, **copy.deepcopy({**defaults, **given}))
    except Exception as error:  # as in architecture_problems
        raise ValueError(f"model.config does not fit the architecture {architecture}: {error}") from error


def require_model_of_task(task: str, config: PretrainedConfig) -> None:
    """Raise ValueError if transformers has no model of this type for a task."""
    models = TASKS[task].auto()._model_mapping
    if type(config) not in models:
        types = sorted(known.model_type for known in models)
        hint = did_you_mean(config.model_type, types, otherwise=f"such as {', '.join(types[:5])}")
        raise ValueError(f"{config.model_type!r} is a model type without a model for the task {task}; {hint}")


def require_classes(model: PreTrainedModel, num_labels: int) -> None:
    """Raise ValueError if the data have more classes than the model."""
    if model.config.num_labels < num_labels:
        raise ValueError(
            f"the data have {num_labels} classes, but model.config.num_labels is {model.config.num_labels}: "
            f"leave it out, or set it to {num_labels}"
        )


def model_not_found(name_or_path: str) -> str:
    """The sentence for a model that is neither in a folder nor on the Hub."""
    return (
        f"model.name_or_path is {name_or_path!r}, which is no folder with a model, and it cannot be loaded from the "
        "Hub: check the name and the network, or give a local folder with model.name_or_path=FOLDER"
    )


def locate(name_or_path: str, key: str = "model.name_or_path") -> str:
    """A folder or Hub id for from_pretrained. `package:NAME/FOLDER` is a folder of an installed Python package.

    Args:
        name_or_path: as the recipe has it.
        key: the recipe's key, for error messages.

    Raises:
        ValueError: the package is not installed, or has no such folder.
    """
    if not name_or_path.startswith("package:"):
        return name_or_path
    package, _, folder = name_or_path.removeprefix("package:").partition("/")
    if not package.isidentifier():  # find_spec would import the parent package of a dotted name
        raise ValueError(f"{key} is {name_or_path!r}; write it as package:NAME/FOLDER")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"{key} is {name_or_path!r}, but the package {package} is not installed: "
            f"pip install {package.replace('_', '-')}, or give a folder or a Hub id"
        )
    root = Path(spec.submodule_search_locations[0]).resolve()
    path = (root / folder).resolve()
    if not path.is_dir() or not path.is_relative_to(root):
        raise ValueError(f"{key} is {name_or_path!r}, but the package {package} has no folder {folder!r}")
    return str(path)
