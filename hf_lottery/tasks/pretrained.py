"""The folder of pretrained weights. A GGUF file is converted to such a folder, once in a process."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lottery.tasks.building import locate

try:  # since transformers 5.2x GGUF weights may stay packed, in layers that cannot be trained
    from transformers import GgufConfig

    _UNPACKED = {"quantization_config": GgufConfig(dequantize=True)}
except ImportError:
    _UNPACKED = {}


def pretrained_folder(model: Any) -> str:
    """The folder or Hub id of the weights of a section `model`; for a GGUF file, the folder of its converted weights.

    Raises:
        ValueError: the package `gguf` is missing, or there is no such file.
    """
    source = locate(model.name_or_path)
    if model.gguf_file is None:
        return source
    if find_spec("gguf") is None:
        raise ValueError("model.gguf_file needs the package gguf: pip install 'hf_lottery[smollm2]'")
    if Path(source).is_dir() and not (Path(source) / model.gguf_file).is_file():
        there = ", ".join(sorted(path.name for path in Path(source).glob("*.gguf"))) or "none"
        raise ValueError(
            f"model.gguf_file is {model.gguf_file!r}, which is not in {model.name_or_path}; GGUF files there: {there}"
        )
    return _converted(source, model.gguf_file, model.revision).name


@cache  # converting takes seconds to a minute, and every network of an experiment starts from the same weights
def _converted(source: str, gguf_file: str, revision: str | None) -> tempfile.TemporaryDirectory:
    options = {"gguf_file": gguf_file, **({} if revision is None else {"revision": revision})}
    folder = tempfile.TemporaryDirectory(prefix="hf_lottery-")
    try:
        model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **options, **_UNPACKED)
    except OSError as error:
        folder.cleanup()
        raise ValueError(
            f"model.name_or_path is {source!r} with the file {gguf_file!r}, which cannot be loaded: check both"
        ) from error
    # the same weights in a model without a GGUF config: a model with one cannot be saved
    config = copy.deepcopy(model.config)
    if "quantization_config" in config.__dict__:
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder.name)
    AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options).save_pretrained(folder.name)
    return folder
