"""Takes values as they were meant before a YAML 1.1 reader, such as PyYAML, read and wrote a recipe.

YAML 1.1 reads `save_strategy: no` as false, `1e-3` as text and `pattern: 2:4` as 124, base sixty. A recipe that such a
reader has read and written again, as YAML or JSON, has the other values, and means the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum
from typing import Any, get_args, get_origin

_WITH_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]{1,4}")


def as_meant(key: str, value: Any, kinds: Collection[Any]) -> Any:
    """The value that the author wrote, if a YAML 1.1 reader has changed it; otherwise `value`.

    Args:
        key: of the setting.
        value: as read.
        kinds: the types that the setting takes.
    """
    if value is False and any(isinstance(kind, type) and issubclass(kind, Enum) and _has_no(kind) for kind in kinds):
        return "no"
    if key == "report_to" and value in (False, "no"):
        return "none"
    if key == "pattern" and type(value) is int and 0 < value // 60 < value % 60:
        return f"{value // 60}:{value % 60}"
    if float in kinds:
        return _number(value)
    if isinstance(value, dict) and any(get_origin(kind) is dict and get_args(kind)[1:] == (float,) for kind in kinds):
        return {name: _number(number) for name, number in value.items()}
    return value


def _has_no(kind: type[Enum]) -> bool:
    return "no" in [member.value for member in kind]


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _WITH_EXPONENT.fullmatch(value) else value
