"""Reads and writes the YAML of recipes: plain values, and the line number of each.

The rules are those of YAML 1.2's core schema, not of YAML 1.1 as in PyYAML: `1e-3` is a number, `no` and `off` are
text (so `save_strategy: no` works), and `2:4` is text, not 124 (base sixty). A duplicate key is an error, and so is a
document that is too long or nested too deeply to be a recipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from hf_lottery.printable import shown

Keys = tuple[str, ...]

LONGEST_TEXT = 1 << 18  # characters of a file or an override
MOST_VALUES = 5000
DEEPEST = 20  # keys from the top of a recipe to a value
_MOST_DIGITS = 100

_INT = r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = (
    r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(f"^(?:{_INT})$"), list("-+0123456789")),
    ("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT})$"), list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - none of YAML 1.1's; ours are added below

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*name) is not allowed in a recipe; quote the text, or repeat the value",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type, so that every reader gets the text back."""


for _tag, _regexp, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _regexp, _first)
    _Dumper.add_implicit_resolver(_tag, _regexp, _first)


@dataclass
class Located:
    """The values of a YAML document and their line numbers.

    Attributes:
        value: dicts (with text keys), lists, text, numbers, booleans and None.
        lines: path of keys (the index of a list's item as text) -> line number, from 1.
        problems: (line, path, sentence) for what cannot be read, such as a duplicate key or an unknown tag.
        count: number of values read so far.
    """

    value: Any = None
    lines: dict[Keys, int] = field(default_factory=dict)
    problems: list[tuple[int, Keys, str]] = field(default_factory=list)
    count: int = 0


class _TooMuch(Exception):
    """More values, or deeper ones, than a recipe has."""


def read_yaml(text: str) -> Located:
    """Read one YAML document.

    Args:
        text: the document. The value of an empty one is None.

    Returns:
        The values, lines and problems. After a syntax error: one problem, and no value.
    """
    located = Located()
    if len(text) > LONGEST_TEXT:
        sentence = f"has {len(text):,} characters; a recipe has at most {LONGEST_TEXT:,}"
        return Located(problems=[(1, (), sentence)])
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            located.value = _value(node, (), located)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        sentence = ", ".join(part for part in (error.context, error.problem) if part)
        located.problems.append((mark.line + 1 if mark else 1, (), f"is not YAML: {sentence}"))
    except yaml.YAMLError as error:  # a character that YAML does not allow
        located.problems.append((1, (), f"is not YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        located.problems.append((1, (), "is nested too deeply to be a recipe"))
    except _TooMuch as error:
        return Located(problems=[(1, (), str(error))])
    return located


def write_yaml(value: Any) -> str:
    """Plain values as YAML text, keys in their given order. `read_yaml` of it returns equal values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def _value(node: yaml.Node, path: Keys, located: Located) -> Any:
    located.lines.setdefault(path, node.start_mark.line + 1)
    located.count += 1
    if located.count > MOST_VALUES:
        raise _TooMuch(f"has more than {MOST_VALUES:,} values, which is too many for a recipe")
    if len(path) > DEEPEST:
        raise _TooMuch("is nested too deeply to be a recipe")
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(index)), located) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, located)
    try:
        return _scalar(node)
    except ValueError:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        sentence = f"is {shown(node.value)} ({kind}), which no setting accepts; "
        sentence += "write a number, true, false, null or text"
        located.problems.append((node.start_mark.line + 1, path, sentence))
        return None


def _mapping(node: yaml.MappingNode, path: Keys, located: Located) -> dict[str, Any]:
    result = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            located.problems.append((line, path, "has a list or a mapping as a key; a key is text"))
            continue
        key = key_node.value
        here = (*path, key)
        if key in result:
            located.problems.append(
                (line, here, f"is there twice, on lines {located.lines[here]} and {line}; remove one of them")
            )
            continue
        located.lines[here] = line
        result[key] = _value(value_node, here, located)
    return result


def _scalar(node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text = node.value
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int" and len(text) <= _MOST_DIGITS:
        prefix = text[:2]
        return int(text, {"0x": 16, "0o": 8}.get(prefix, 10))
    if kind == "float" and text.lower() != ".nan":
        return float(text.lower().replace(".inf", "inf"))
    raise ValueError(kind)
