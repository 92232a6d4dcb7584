"""The sections whose keys are the arguments of another class: their names and types.

`training` is TrainingArguments, `lottery` LotteryConfig, `peft` LoraConfig, `quantization` BitsAndBytesConfig. Names
and types are read from those classes, so the settings of a new release work at once. Types are checked, which
transformers' own parser does not do: 2.5 for a whole number and "no" for a boolean are errors.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import StringConstraints, TypeAdapter, ValidationError

from hf_lottery.config import LotteryConfig, require_regex
from hf_lottery.recipe.code import refused
from hf_lottery.recipe.errors import sentences, unknown_key
from hf_lottery.recipe.ranges import out_of_range
from hf_lottery.recipe.yaml import Keys
from hf_lottery.recipe.yaml_1_1 import as_meant

DTYPES = Literal["float32", "bfloat16", "float16"]
OWNERS = {
    "training": "TrainingArguments",
    "lottery": "LotteryConfig",
    "peft": "LoraConfig",
    "quantization": "BitsAndBytesConfig",
}


@cache
def settings_of(section: str) -> dict[str, Any]:
    """The settings of a section: name -> type. Imports their class, and with it torch."""
    if section == "training":
        from transformers import TrainingArguments

        return {name: _mapping_only(hint) for name, hint in _dataclass_settings(TrainingArguments).items()}
    if section == "lottery":
        return _dataclass_settings(LotteryConfig)
    if section == "peft":
        from peft import LoraConfig

        settings = _dataclass_settings(LoraConfig)
        # LoraConfig's own list of values has the literal 'pissa_niter_[number of iters]'; a number is meant
        settings["init_lora_weights"] |= Annotated[str, StringConstraints(pattern=r"^pissa_niter_[0-9]{1,6}$")]
        return settings
    return _quantization_settings()


def check_settings(
    section: str, given: dict[str, Any], settings: dict[str, Any], elsewhere: Callable[[Keys], list[str]]
) -> tuple[dict[str, Any], list[tuple[Keys, str]]]:
    """Check a section's keys and the types of its values.

    Args:
        section: such as `training`.
        given: as read from the recipe. A value that a YAML 1.1 reader changed is put back (see yaml_1_1.py).
        settings: name -> type, from `settings_of`.
        elsewhere: path of an unknown key -> the other sections that have a key of this name.

    Returns:
        The valid values, converted to their types (nested dataclasses are built, and 6 becomes 6.0 for a float), and
        (path, sentence) for each problem.
    """
    values, problems = {}, []
    for key, value in given.items():
        if key not in settings:
            path = (section, key)
            problems.append((path, unknown_key(path, settings, OWNERS[section], elsewhere(path))))
            continue
        kinds = members_of(settings[key])
        value = given[key] = as_meant(key, value, kinds)
        try:
            values[key] = TypeAdapter(settings[key]).validate_json(json.dumps(value), strict=True)
            # LotteryConfig checks its values itself
            wrong = (
                [] if section == "lottery" else out_of_range(section, key, value) + _bad_patterns(section, key, value)
            )
        except ValidationError as error:
            wrong = sentences(error, value, (section, key), OWNERS[section])
        problems += refused(section, key, value) or _unknown_in_dataclass((section, key), kinds, value) + wrong
    return values, problems


def _dataclass_settings(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {
        field.name: Literal[tuple(field.metadata["choices"])]
        if field.metadata.get("choices")
        else _narrowed(hints[field.name])
        for field in fields(cls)
        if field.init
    }


def members_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, without annotations; of another type the type itself."""
    if get_origin(hint) is Annotated:
        return members_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for member in get_args(hint) for kind in members_of(member))
    return (hint,)


def _mapping_only(hint: Any) -> Any:
    """`dict | str` without `str`, which would be the path of a JSON file, or JSON itself."""
    members = members_of(hint)
    if any(kind is dict or get_origin(kind) is dict for kind in members):
        return Union[tuple(kind for kind in members if kind is not str)]  # noqa: UP007 - made at run time
    return hint


def _bad_patterns(section: str, key: str, value: Any) -> list[tuple[Keys, str]]:
    """(path, sentence) for a regular expression that cannot be compiled."""
    patterns = []
    if key in ("target_modules", "exclude_modules", "optim_target_modules") and isinstance(value, str):
        patterns = [value]
    elif key == "layers_pattern":
        patterns = [value] if isinstance(value, str) else value or []
    elif key in ("rank_pattern", "alpha_pattern"):
        patterns = value or []
    problems = []
    for pattern in patterns:
        try:
            require_regex(f"{section}.{key}", pattern)
        except ValueError as error:
            problems.append(((section, key), str(error)))
    return problems


def _narrowed(hint: Any) -> Any:
    """`SaveStrategy | str` without `str`: TrainingArguments accepts the values of the enum only."""
    members = members_of(hint)
    if len(members) == 1:
        return hint
    if any(isinstance(member, type) and issubclass(member, Enum) for member in members):
        members = tuple(member for member in members if member is not str)
    return Union[members]  # noqa: UP007 - made at run time


def _quantization_settings() -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    parameters = inspect.signature(BitsAndBytesConfig.__init__).parameters
    settings = {
        name: type(parameter.default)
        for name, parameter in parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    # for these the type of the default is not the type of the setting
    settings["llm_int8_skip_modules"] = list[str] | None
    settings["bnb_4bit_compute_dtype"] = DTYPES | None
    settings["bnb_4bit_quant_storage"] = Literal["uint8", "int8", "float32", "bfloat16", "float16", "float64"] | None
    settings["bnb_4bit_quant_type"] = Literal["fp4", "nf4"]
    return settings


def _unknown_in_dataclass(path: Keys, kinds: tuple, value: Any) -> list[tuple[Keys, str]]:
    """Unknown keys of a nested config such as peft's EvaConfig, which pydantic does not report."""
    for cls in kinds:
        if is_dataclass(cls) and isinstance(value, dict):
            known = [field.name for field in fields(cls)]
            return [
                ((*path, key), unknown_key((*path, key), known, cls.__name__)) for key in value if key not in known
            ]
    return []
