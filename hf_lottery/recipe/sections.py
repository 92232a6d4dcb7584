"""The sections of a recipe that are our own: `model`, `experiment`, `hub`."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hf_lottery.recipe.errors import sentences, shown, unknown_key
from hf_lottery.recipe.yaml import Keys

ControlName = Literal[
    "dense",
    "random_reinit",
    "random_mask",
    "no_rewinding",
    "learning_rate_rewinding",
    "one_shot",
    "shuffled_weights",
    "signed_reinit",
]


class Section(BaseModel):
    """A section: unknown keys are errors, types are not bent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


# arguments of from_pretrained that are no part of a model's config: they name code, places and devices, and a recipe
# may come out of a stranger's ticket
_OF_THE_LOADER = {
    *("trust_remote_code", "code_revision", "auto_map", "custom_generate", "kernel_config", "use_kernels"),
    *("token", "use_auth_token", "revision", "subfolder", "variant", "gguf_file", "cache_dir", "local_files_only"),
    *("force_download", "proxies", "use_safetensors", "weights_only", "state_dict", "config", "key_mapping"),
    *("quantization_config", "sparsity_config", "adapter_kwargs", "adapter_name", "device_map", "device_mesh"),
    *("max_memory", "offload_folder", "offload_buffers", "tp_plan", "tp_size", "distributed_config", "dtype"),
    *("torch_dtype", "ignore_mismatched_sizes", "output_loading_info"),
}


class ModelSection(Section):
    """What is trained: pretrained weights (`name_or_path`), or random ones (`architecture`).

    Args:
        name_or_path: a Hub id or a folder, for AutoModelFor….from_pretrained.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights.
        gguf_file: the file to read in a folder of GGUF files.
        device_map: `auto` spreads a large model over the devices that one process has.
        architecture: a transformers model_type, ours (lenet, conv-net, …) included.
        config: arguments of the model's config.
    """

    name_or_path: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    gguf_file: str | None = None
    device_map: Literal["auto"] | None = None
    architecture: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        if (self.name_or_path is None) == (self.architecture is None):
            raise ValueError(
                "model takes either name_or_path (pretrained weights) or architecture (random ones), "
                + ("not both" if self.architecture else "and has neither")
            )
        for key, value in self.config.items():
            if key in _OF_THE_LOADER or key.startswith("_"):
                raise ValueError(f"model.config.{key} is no argument of a model's config, and is not passed on")
            if key == "attn_implementation" and not str(value).replace("_", "").isalnum():
                raise ValueError(
                    f"model.config.{key} is {value!r}; it must be a name such as sdpa, eager or flash_attention_2"
                )
        for key in ("revision", "gguf_file"):
            if self.architecture is not None and getattr(self, key) is not None:
                raise ValueError(f"model.{key} goes with name_or_path; an architecture has no files to choose from")
        return self


class Control(Section):
    """One comparison.

    Args:
        name: which.
        rounds: the rounds it is run at; None is every round from 1.
        per_ticket: how many samples of it at each round.
    """

    name: ControlName
    rounds: list[int] | None = None
    per_ticket: int = Field(default=1, ge=1)

    @field_validator("rounds")
    @classmethod
    def _in_order(cls, rounds: list[int] | None) -> list[int] | None:
        if rounds is None:
            return None
        if not rounds or min(rounds) < 1:
            raise ValueError("it must be a list of rounds, 1 or more, such as [1, 4, 7]; leave it out for every round")
        return sorted(set(rounds))


class Experiment(Section):
    """How often, and against what.

    Args:
        replicates: the whole experiment under that many seeds: training.seed, training.seed + 1, …
        controls: in a recipe a list of names, or name -> {rounds, per_ticket}.
    """

    replicates: int = Field(default=1, ge=1)
    controls: list[Control] = Field(default_factory=list)


class Hub(Section):
    """What `hf-lottery push` publishes, and where.

    Args:
        repo_id: such as you/lenet-300-100-ticket.
        private: whether the repository is.
        commit_message: of the upload.
        include_model: whether the trained weights go along.
        compress: whether the files are compressed.
    """

    repo_id: str | None = None
    private: bool = False
    commit_message: str | None = None
    include_model: bool = False
    compress: bool = False


def read_controls(given: Any) -> tuple[list[Control], list[tuple[Keys, str]]]:
    """Controls as a recipe writes them, a list of names or name -> {rounds, per_ticket}, as a list of Control.

    Returns:
        The controls that are right, and (path below `experiment.controls`, sentence) for each that is not.
    """
    if isinstance(given, list):
        written = [((str(index),), name, {}) for index, name in enumerate(given)]
    elif isinstance(given, dict):
        written = [((name,), name, {} if body is None else body) for name, body in given.items()]
    else:
        sentence = "must be a list of names, or a mapping from name to {rounds: [1, 4], per_ticket: 3}"
        return [], [((), f"experiment.controls is {shown(given)}; it {sentence}")]
    controls, problems = [], []
    for path, name, body in written:
        here = ("experiment", "controls", *path)
        if name in [control.name for control in controls]:
            problems.append((path, f"experiment.controls has {name!r} twice; for more samples write per_ticket"))
            continue
        if not isinstance(body, dict):
            problems.append((path, f"{'.'.join(here)} is {shown(body)}; it takes {{rounds: [1, 4], per_ticket: 3}}"))
            continue
        for key in set(body) - {"rounds", "per_ticket"}:
            sentence = unknown_key((*here, key), ["rounds", "per_ticket"], "a control")
            problems.append(((*path, key), sentence))
        values = {"name": name, **{key: body[key] for key in ("rounds", "per_ticket") if key in body}}
        try:
            controls.append(Control.model_validate_json(json.dumps(values), strict=True))
        except ValidationError as error:
            # a control's name stands as the key, or as the list's item
            wrong_name = f"{'.'.join(here)}.name is"
            problems += [
                (full[2:], sentence.replace(wrong_name, "experiment.controls has"))
                for full, sentence in sentences(error, values, here, "a control")
            ]
    return controls, problems
