"""A recipe file with its overrides, before it is checked: plain values, and where each of them is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lottery.printable import shown
from hf_lottery.recipe.errors import Problem
from hf_lottery.recipe.yaml import DEEPEST, Keys, read_yaml
from hf_lottery.redaction import redacted_word


@dataclass
class Source:
    """The values of a recipe, where each is written, and the problems found so far.

    Attributes:
        values: section -> its values.
        places: path of keys -> (place for an error message, line number to sort by).
        problems: found so far.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, tuple[str, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: Keys, sentence: str) -> None:
        """Add a problem with the value at `path`. Its place is that of `path`, or of the nearest key above it."""
        self.problems.append(self.problem(path, sentence))

    def problem(self, path: Keys, sentence: str) -> Problem:
        """The problem that `add` adds."""
        while path not in self.places:
            path = path[:-1]
        place, line = self.places[path]
        return Problem(place, line, sentence)


def read_source(path: Path, overrides: list[str]) -> Source:
    """Read a recipe file and apply the overrides.

    Args:
        path: of the file.
        overrides: each `a.b=c`, where c is read as YAML. If two set the same key, the later one is used.

    Returns:
        The values. Text that is not YAML is in `problems`.
    """
    name = _short(path)
    source = Source(places={(): (f"{name}:1", 1)})
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark first
    except UnicodeDecodeError as error:
        source.add((), f"is not text in UTF-8 (byte {error.start} is not); save it as UTF-8")
        return source
    located = read_yaml(text)
    source.places |= {keys: (f"{name}:{line}", line) for keys, line in located.lines.items() if keys}
    for line, keys, sentence in located.problems:
        source.problems.append(Problem(f"{name}:{line}", line, " ".join([*filter(None, [".".join(keys)]), sentence])))
    if not isinstance(located.value, dict) and located.problems:
        return source  # not YAML: what the overrides would add to it is of no use
    if isinstance(located.value, dict):
        source.values = located.value
    else:
        what = "is empty" if located.value is None else f"is {shown(located.value)}"
        source.add((), f"{what}; a recipe is a mapping with the sections model, data, training, …")
        return source
    for number, override in enumerate(overrides):
        _override(source, override, number)
    return source


def _override(source: Source, override: str, number: int) -> None:
    place = (f"override '{redacted_word(override)}'", 10**9 + number)
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.split("."))
    if not equals or not all(keys):
        source.problems.append(
            Problem(*place, "an override is written section.key=value, such as training.max_steps=1000")
        )
        return
    if len(keys) > DEEPEST:
        source.problems.append(Problem(*place, f"the key is nested too deeply: {len(keys):,} names in a row"))
        return
    located = read_yaml(text)
    for _, below, sentence in located.problems:
        source.problems.append(Problem(*place, f"{'.'.join(keys + below)} {sentence}"))
    if located.problems:
        return
    values = source.values
    for depth, key in enumerate(keys[:-1], start=1):
        if values.get(key) is None:
            values[key] = {}
            source.places[keys[:depth]] = place
        values = values[key]
        if not isinstance(values, dict):
            above = ".".join(keys[:depth])
            source.problems.append(Problem(*place, f"{above} is {shown(values)}, which has no keys to override"))
            return
    values[keys[-1]] = located.value
    source.places = {path: where for path, where in source.places.items() if path[: len(keys)] != keys}
    source.places[keys] = place


def _short(path: Path) -> str:
    """The path relative to the working directory, if the file is inside of it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
