"""What is published says nothing about the machine that it comes from: no absolute path, no home folder, no token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from hf_lottery.redaction import redacted, without_secrets

_NAMELESS = "folder"  # in the place of a path whose last part is itself a home folder
_LOCAL = r"(?:file:|~[\w.-]*[\\/]|/|\\\\|[A-Za-z]:[\\/]|(?:\.\.[\\/])+(?:home|Users|root)[\\/])"
_WHOLE = re.compile(rf"{_LOCAL}(?!\s)[^\n]*|~|~[A-Za-z_][\w-]*")
# inside of other text: after a space, a quote or a sign, up to the next one; addresses with another scheme stay
_INSIDE = re.compile(
    rf"(?P<address>\b(?!file:)[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"]*)|(?<![\w.~/\\<}}%-])(?P<path>{_LOCAL}[^\s'\",;()\[\]<>|]+)"
)
_HOME = re.compile(r"(?:(?:home|Users|Documents and Settings)[\\/][^\\/]+|root|~[^\\/]*)", re.I)
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
_YAML_WORDS = frozenset(["true", "false", "null", "none", "yes", "no", "on", "off", "y", "n"])


def published_recipe(text: str) -> str:
    """A recipe's text with the last part of each absolute path in its place, and without tokens.

    Relative paths and addresses stay, and so do comments and the form of the text.
    """
    return redacted(_without_paths_inside(_with_cleaned_values(text)))


def published_value(value: Any) -> Any:
    """Plain values (dicts, lists, texts, numbers) whose texts are cleaned in the same way."""
    return _cleaned(without_secrets(value))


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return _cleaned_text(value) if isinstance(value, str) else value


def _cleaned_text(text: str) -> str:
    """A value that is a path as a whole may have spaces and commas in it."""
    return _last_part(text) if _WHOLE.fullmatch(text.strip()) else _without_paths_inside(text)


def _without_paths_inside(text: str) -> str:
    return _INSIDE.sub(lambda found: found["address"] or _last_part(found["path"]), text)


def _last_part(path: str) -> str:
    path = re.sub(r"^file:[\\/]*", "/", path.strip())
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..")]
    home = _HOME.fullmatch(re.sub(r"^([A-Za-z]:|[.\\/])*[\\/]+", "", path.rstrip("\\/")))
    return parts[-1] if parts and not home and not parts[-1].endswith(":") else _NAMELESS


def _with_cleaned_values(text: str) -> str:
    """`text` with its YAML texts cleaned one by one; as it is where it is not YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        scalars = list(_texts(node)) if node is not None else []
    except (yaml.YAMLError, RecursionError):
        return text
    offset = text.startswith("\ufeff")  # is not counted in the marks
    for scalar in sorted(scalars, key=lambda scalar: scalar.start_mark.index, reverse=True):
        cleaned = _cleaned_text(scalar.value)
        if cleaned != scalar.value:
            start, end = scalar.start_mark.index + offset, scalar.end_mark.index + offset
            after = text[start:end]
            after = after[len(after.rstrip()) :]  # a block's line break belongs to it
            text = text[:start] + _written(cleaned) + after + text[end:]
    return text


def _texts(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:str":
            yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _texts(item)
    else:
        for key, value in node.value:
            yield from _texts(key)
            yield from _texts(value)


def _written(text: str) -> str:
    """A text as YAML."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)
