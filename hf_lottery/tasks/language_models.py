"""A causal language model from a recipe's section `model` alone: its config, its weights, whether they are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from hf_lottery.bundled import bundled_config
from hf_lottery.tasks.building import architecture_config, build, locate, model_not_found
from hf_lottery.tasks.pretrained import pretrained_folder


def pretrained_model(model: Any, seed: int, quantization_config: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    """The language model of a section `model`, at θ_0.

    Args:
        model: the section.
        seed: for the random weights of an `architecture`.
        quantization_config: loads pretrained weights in 4 or 8 bits.

    Raises:
        ValueError: the model is not found, or an architecture with random weights is to be quantised.
    """
    if model.name_or_path is None:
        if quantization_config is not None:
            raise ValueError(
                "quantization works with pretrained weights (model.name_or_path), not with the random ones of "
                "model.architecture"
            )
        return build("causal_lm", model, seed)
    options = {} if quantization_config is None else {"quantization_config": quantization_config}
    return build("causal_lm", _without_gguf(model), seed, **options)


def model_config(model: Any) -> PretrainedConfig:
    """The config of a section `model`: from its `architecture`, folder or Hub id.

    If the Hub cannot be reached, a config that this package contains is used, for the models that its recipes name.
    Weights are not read, with one exception: a GGUF file has to be read whole to find its config, so it is converted,
    once in a process.

    Raises:
        ValueError: no config is found.
    """
    if model.name_or_path is None:
        return architecture_config(model.architecture, model.config or {}, {})
    model = _without_gguf(model)
    options = {} if model.revision is None else {"revision": model.revision}
    try:
        return AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=False, **options, **model.config)
    except (OSError, ValueError) as error:
        if (folder := bundled_config(model.name_or_path)) is not None:
            return AutoConfig.from_pretrained(folder, **model.config)
        raise ValueError(model_not_found(model.name_or_path)) from error


def known_config(model: Any) -> PretrainedConfig | None:
    """The config of a section `model` if it is on this machine. None: the Hub or a GGUF file would have to be read."""
    if model.name_or_path is None:
        return architecture_config(model.architecture, model.config or {}, {})
    if model.gguf_file is not None:
        return None
    for place in filter(None, (locate(model.name_or_path), bundled_config(model.name_or_path))):
        options = {} if model.revision is None else {"revision": model.revision}
        try:
            return AutoConfig.from_pretrained(
                place, trust_remote_code=False, local_files_only=True, **options, **(model.config or {})
            )
        except (OSError, ValueError):
            continue
    return None


def has_weights(model: Any) -> bool:
    """Whether a model's weights are on this machine. The Hub is not asked. True for an architecture's random ones."""
    if model.name_or_path is None:
        return True
    folder = locate(model.name_or_path)
    if not Path(folder).is_dir():
        try:
            folder = snapshot_download(folder, revision=model.revision, local_files_only=True)
        except (HFValidationError, LocalEntryNotFoundError):
            return False
    return any(path.suffix in (".safetensors", ".bin", ".gguf") for path in Path(folder).iterdir())


def _without_gguf(model: Any) -> Any:
    """The section `model`, with a GGUF file replaced by the folder of its converted weights."""
    return model.model_copy(update={"name_or_path": pretrained_folder(model), "gguf_file": None})
