"""The part of a model's configuration that a ticket may hold: sizes and plain words, no code, paths or addresses."""

from __future__ import annotations

import re
from typing import Any

from hf_lottery.ticket.validators import accepts, fail, integer, matches, optional

# keys that name code, files or kernels: the shapes of a model do not need them, and from a stranger they are not read
_CODE_KEYS = re.compile(
    r"^_|auto_map|quantization_config|sparsity_config|implementation|use_kernels|kernel_config|custom|remote|compile"
)
_KEY = re.compile(r"[\w.-]{1,64}", re.ASCII)
# no slash, colon, dot or double dash: not a path, a URL, a repository or an import path
_plain_word = matches(re.compile(r"(?!.*--)[\w -]{0,64}", re.ASCII), "a plain word, not a path or an address")


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a model's `config.to_dict()` that a ticket may hold: what `AutoConfig.for_model` needs.

    Keys that name code, files or kernels are left out, and so are texts that are not plain words.
    """
    return _plain(config)


def config_object(value: Any, where: str) -> None:
    """Raise TicketError unless `value` is an object that `plain_config` makes, with the types that we ourselves use."""
    if not isinstance(value, dict):
        fail(where, value, "an object, such as {'model_type': 'bert', 'num_labels': 2}")
    config_value(value, where)
    if not isinstance(value.get("model_type", ""), str):
        fail(f"{where}.model_type", value["model_type"], "a plain word")
    optional(integer(0, 1 << 20))(value.get("num_labels"), f"{where}.num_labels")


def config_value(value: Any, where: str, depth: int = 0) -> None:
    """Raise TicketError unless `value` is what `plain_config` makes: bounded, and without code, paths or addresses."""
    if depth > 6:
        fail(where, value, "nested at most 6 deep")
    if isinstance(value, dict):
        _config_object(value, where, depth)
    elif isinstance(value, list):
        if len(value) > 65536:
            fail(where, value, "a list of at most 65536")
        for item in value:
            config_value(item, where, depth + 1)
    elif isinstance(value, str):
        _plain_word(value, where)
    elif value is not None and type(value) not in (bool, int, float):
        fail(where, value, "a number, a plain word, a list or an object")


def _config_object(found: dict[str, Any], where: str, depth: int) -> None:
    if len(found) > 4096:
        fail(where, found, "an object of at most 4096 keys")
    for key, item in found.items():
        if not _KEY.fullmatch(key) or _CODE_KEYS.search(key):
            fail(where, key, "an object without keys that name code, files or kernels")
        config_value(item, f"{where}.{key}", depth + 1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        cleaned = {str(key): _plain(item) for key, item in value.items() if not _CODE_KEYS.search(str(key))}
        return {key: item for key, item in cleaned.items() if accepts(config_value, {key: item})}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
