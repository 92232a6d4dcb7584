"""All problems of a recipe at once: each with its line, its key, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from hf_lottery.printable import MOST_LINES, one_line, shown
from hf_lottery.recipe.yaml import Keys
from hf_lottery.redaction import redacted
from hf_lottery.suggest import did_you_mean, in_brackets

# pydantic's name of a type error -> what the value must be. `_allowed` below adds bounds and choices.
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "dataclass": "a mapping",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
}
_NOT_YAML_BOOLEANS = ("yes", "no", "on", "off", "y", "n", "1", "0")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Args:
        place: `recipes/x.yaml:12`, or `override 'a.b=c'`.
        line: sorts the problems: first those of the file by line, then those of the overrides.
        message: one sentence that names the dotted key.
    """

    place: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{_short(self.place)}: {one_line(self.message)}"


class RecipeError(ValueError):
    """A recipe with problems. `problems` lists all of them; str() has one line for each of the first MOST_LINES."""

    def __init__(self, problems: Iterable[Problem]):
        problems = [replace(p, place=redacted(p.place), message=redacted(p.message)) for p in problems]
        self.problems = sorted(dict.fromkeys(problems), key=lambda problem: problem.line)
        more = len(self.problems) - MOST_LINES
        left_out = [f"… and {more} more problems"] if more > 0 else []
        super().__init__("\n".join([*map(str, self.problems[:MOST_LINES]), *left_out]))


def _short(place: str) -> str:
    """A place on one line: an override is repeated in full unless it is long."""
    place = one_line(place)
    return place if len(place) <= 300 else f"{place[:280]} …{place[-10:]}"


def unknown_key(path: Keys, known: Iterable[str], owner: str, elsewhere: Iterable[str] = ()) -> str:
    """The sentence for an unknown key, with the nearest known key, or the section that has a key of this name.

    Args:
        path: of the key, as written.
        known: the keys that are allowed here.
        owner: the class or section they are settings of, such as TrainingArguments.
        elsewhere: sections that have a key of exactly this name.
    """
    known, key = list(known), path[-1]
    close = did_you_mean(key, known)
    if places := [f"'{other}.{key}'" for other in elsewhere]:
        hint = f"did you mean {' or '.join(places)}?"
    elif close:
        hint = close
    elif len(known) <= 12:
        hint = f"it takes {', '.join(known)}"
    else:
        hint = f"see {owner}'s documentation for its settings"
    return f"{'.'.join(path)} is not a {'setting' if path[1:] else 'section'} of {owner}; {hint}"


def sentences(error: ValidationError, value: Any, section: Keys, owner: str) -> list[tuple[Keys, str]]:
    """pydantic's errors as (path, sentence). The errors for the members of a union become one sentence.

    Args:
        error: raised when `value` was validated.
        value: plain lists, dicts and scalars.
        section: the path of `value` in the recipe.
        owner: the class or section that the keys are settings of.
    """
    grouped: dict[Keys, list[dict]] = {}
    for entry in error.errors(include_url=False):
        grouped.setdefault(_real_path(entry["loc"], value, entry["type"]), []).append(entry)
    return [
        (section + path, _sentence(section + path, _at(value, path), entries, owner))
        for path, entries in grouped.items()
    ]


def _real_path(loc: tuple, value: Any, kind: str) -> Keys:
    """The part of pydantic's `loc` that are keys and indices of the value. The rest are names of a union's members."""
    path: Keys = ()
    for index, part in enumerate(loc):
        if kind == "missing" and index == len(loc) - 1:
            return (*path, str(part))
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            value = value[part]
            path = (*path, str(part))
    return path


def _at(value: Any, path: Keys) -> Any:
    """The value at a path; None if it is missing."""
    for part in path:
        if isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part)
    return value


def _sentence(path: Keys, value: Any, entries: list[dict], owner: str) -> str:
    name, first = ".".join(path), entries[0]
    if first["type"] == "missing":
        return f"{name} is missing; {owner} needs it"
    if first["type"] == "extra_forbidden":
        return f"{name} is not a setting of {owner}"
    if first["type"] in ("value_error", "assertion_error"):
        reason = str(first["ctx"]["error"])
        if reason.startswith(name):
            return reason
        return f"{name}: {reason}" if isinstance(value, dict) else f"{name} is {shown(value)}; {reason}"
    allowed = " or ".join(dict.fromkeys(_allowed(entry, value) for entry in entries))
    return f"{name} is {shown(value)}; it must be {allowed}{_did_you_mean(entries, value)}"


def _allowed(entry: dict, value: Any) -> str:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    if kind in ("literal_error", "enum"):
        choices = _choices(entry)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    base = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    allowed = _KINDS.get(base, entry["msg"][:1].lower() + entry["msg"][1:])
    if base == "bool" and str(value).lower() in _NOT_YAML_BOOLEANS:
        allowed += " (YAML has no other words for them)"
    if base == "int" and isinstance(value, float) and value.is_integer():
        allowed += f": write {int(value)}"
    return allowed


def _did_you_mean(entries: list[dict], value: Any) -> str:
    choices = [choice for entry in entries if entry["type"] in ("literal_error", "enum") for choice in _choices(entry)]
    return in_brackets(value, choices)


def _choices(entry: dict) -> list[str]:
    return [choice.strip("'") for choice in entry["ctx"]["expected"].replace(" or ", ", ").split(", ")]
