"""Recipes and overrides that nobody should write: bundled ones changed at random, and hypothesis' inventions."""

from __future__ import annotations

import copy
import json
import random
from enum import Enum
from functools import cache
from typing import Any, Literal, get_args, get_origin

import yaml
from hypothesis import strategies as st

from hf_lottery.experiment.controls import CONTROLS
from hf_lottery.recipe.check import SECTIONS
from hf_lottery.recipe.sections import Experiment, Hub, ModelSection
from hf_lottery.recipe.settings import OWNERS, members_of, settings_of
from hf_lottery.recipe.yaml import read_yaml, write_yaml
from hf_lottery.tasks import TASKS, task_module

CANARY = "canary_module"
ARCHITECTURES = (
    "lenet",
    "conv-net",
    "vgg",
    "cifar-resnet",
    "small-transformer",
    "vit",
    "bert",
    "gpt2",
    "resnet",
    "swin",
)
CONFIG_KEYS = (
    *("hidden_sizes", "blocks", "depth", "image_size", "num_channels", "num_labels", "hidden_size", "dropout"),
    *("num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "layer_norm_eps", "patch_size"),
    *("auto_map", "attn_implementation", "max_position_embeddings", "depths", "rope_scaling", "trust_remote_code"),
)
NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "3",
        "0.5",
        "1e-3",
        "1e3",
        "-0.0",
        ".inf",
        "-.inf",
        ".nan",
        "1e999",
        "1e-999",
        "4294967295",
    ),
    *("4294967296", "9223372036854775808", "1000000", "1000000001", "9999999999", "-5", "0x" + "f" * 4000, "9" * 5000),
    *("0o17", "0b1", "1_000", "1:30:00", "2020-01-01", "²", "٣", "1e4294967296", "007", "+1", "0.99999", "1.5"),
)
WORDS = (
    *("no", "yes", "on", "off", "true", "false", "null", "~", "none", "all", "auto", "''", "' '", "steps", "epoch"),
    *("layer", "global", "magnitude", "2:4", "²:³", "٢:٤", "4:2", "0:0", "n:m", "rows", "init", "(", "[a-", "(a+)+$"),
    *("a{99999999999}", "(?P<x>", "\\", '"\\0"', '"\\e[2J"', '"\\u202e"', '"\\ud800"', "\u202eevil", "\x1b[31m", "😀"),
    *(
        "../../etc/passwd",
        "/dev/zero",
        "~nobody/x",
        "package:os/path",
        "package:../x",
        "hub://x",
        CANARY,
        f"./{CANARY}",
    ),
    *(f"{CANARY}.{CANARY}", f"!!python/name:{CANARY}.x ''", f"!!python/object/apply:{CANARY}.f []", "!!x y", "&a b"),
    *("*a", "<<", "!!binary aGk=", "!!set {a}", "!!int x", "!!float '1'", "? x", "- x", "a: b: c", "{", "[", "'", '"'),
    *(
        "x" * 300,
        "a\tb",
        "#",
        "%YAML 1.1",
        "---",
        "...",
        "|",
        ">",
        "\ufeff",
        "\x00",
        "\r\n",
        "hf_" + "a" * 34,
    ),
)
NESTED = (
    *(
        "[]",
        "{}",
        "[[]]",
        "{a: {}}",
        "[null]",
        "{null: null}",
        "{1: 2}",
        "[1, a, {b: c}]",
        "{a: 1, a: 2}",
        "{? [a] : b}",
    ),
    "[" * 40 + "]" * 40,
    "{a: " * 30 + "1" + "}" * 30,
    *("{auto_map: {AutoModel: canary_module.x}}", "{_name_or_path: canary_module}", "{rounds: [1], per_ticket: 2}"),
    *("{rounds: [0]}", "{rounds: [99999999]}", "{per_ticket: 999999}", "{train: {vocab_size: 300}}", "{train: 3}"),
    *(
        "{a: .inf}",
        "{backend: canary_module}",
        "{a: 1e-3}",
        "{classifier: 0.1}",
        "{'(': 4}",
        "[a, b]",
        "[0.5]",
        "[300]",
    ),
    "{lower_precision_safe_modules: [canary_module.x]}",
)
VALUES = (*NUMBERS, *WORDS, *NESTED)
# slow to read, so rare
LONG = (
    "x" * 70000,
    "[" * 3000,
    "{a: " * 2000,
    "[" + "1, " * 6000 + "1]",
    "[" + "a: 1, " * 900 + "1]",
    '"' + "\\t" * 9000,
)


@cache
def keys() -> dict[str, list[str]]:
    """Section -> the names of its settings."""
    names = {section: list(settings_of(section)) for section in OWNERS}
    names["model"] = [*ModelSection.model_fields, *(f"config.{key}" for key in CONFIG_KEYS)]
    names["data"] = sorted({field for task in TASKS for field in task_module(task).Data.model_fields})
    names["experiment"] = [*Experiment.model_fields, *(f"controls.{name}" for name in CONTROLS)]
    names["hub"] = list(Hub.model_fields)
    return names


def mutated(sources: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """A bundled recipe changed in one to three places, and up to three overrides."""
    text, overrides = rng.choice(sources), []
    way = rng.randrange(10)
    if way < 3:
        text = changed_text(text, sources, rng)
    elif way < 7:
        text = changed_values(text, rng)
    elif way == 7:  # read and written by PyYAML, or written as JSON
        values = yaml.safe_load(text)
        text = yaml.dump(values) if rng.randrange(2) else json.dumps(values)
    if way >= 7 or rng.randrange(3) == 0:
        overrides = [override(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    return text, overrides


def override(rng: random.Random) -> str:
    """`section.key=value` of a setting that there is, most of the time."""
    section = rng.choice([*SECTIONS, *SECTIONS, "training", "lottery", "metrics", "x"])
    key = f"{section}.{rng.choice(keys().get(section, ['a', 'a.b']))}"
    way = rng.randrange(50)
    if way > 20 and "." not in key[len(section) + 1 :] and section in OWNERS:
        return f"{key}={fitting(settings_of(section)[key.partition('.')[2]], rng)}"
    if way == 0:
        key = mutated_word(key, rng)
    elif way == 1:
        key += rng.choice((".a", ".0", "." * 5, ".x" * 30, ".x" * 3000, "=", " ", "\n", "\x1b"))
    elif way == 2:
        key = section
    equals = "" if rng.randrange(60) == 0 else "="
    return f"{key}{equals}{value(rng)}"


def fitting(hint: Any, rng: random.Random) -> str:
    """A value of a setting's type."""
    kind = rng.choice([kind for kind in members_of(hint) if kind is not type(None)])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return rng.choice([member.value for member in kind])
    if get_origin(kind) is Literal:
        return str(rng.choice(get_args(kind)))
    if kind is bool:
        return rng.choice(("true", "false"))
    if kind is int:
        return str(rng.choice((1, 1, 2, 4, 10, 100, 0)))
    if kind is float:
        return str(rng.choice((0.1, 0.5, 1, 2, 10, 1e-3, 0)))
    return rng.choice(("a", "[a]", "{}", "{a: 1}", "null", "[1]"))


def value(rng: random.Random) -> str:
    """YAML of a value that some setting may take, or none."""
    if rng.randrange(200) == 0:
        return rng.choice(LONG)
    way = rng.randrange(12)
    if way == 0:
        return f"[{rng.choice(VALUES)}, {rng.choice(VALUES)}]"
    if way == 1:
        return f"{{{rng.choice(WORDS)}: {rng.choice(VALUES)}}}"
    if way < 6:
        return str(rng.choice((0, 1, 2, 5, 10, 100, 0.1, 0.25, 0.9, 1e-4, True, False))).lower()
    if way == 6:
        return rng.choice(ARCHITECTURES)
    return rng.choice(VALUES)


def mutated_word(word: str, rng: random.Random) -> str:
    """A word with a character left out, put in or swapped."""
    at = rng.randrange(len(word) + 1)
    return word[:at] + rng.choice(("", "x", ".", "\u202e", "é", "_")) + word[at + rng.randrange(2) :]


def changed_text(text: str, sources: list[str], rng: random.Random) -> str:
    """A file with lines or characters removed, repeated, moved or replaced."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        at, way = rng.randrange(len(lines)), rng.randrange(9)
        if way == 0:
            del lines[at : at + rng.choice((1, 1, 2, 10))]
        elif way == 1:
            lines.insert(at, rng.choice(lines))
        elif way == 2:
            lines[at] = " " * rng.randrange(5) + lines[at].strip()
        elif way == 3:
            lines.insert(at, " " * rng.randrange(5) + rng.choice(VALUES))
        elif way == 4:
            name = lines[at].partition(":")[0]
            lines[at] = f"{name}: {rng.choice(VALUES)}"
        elif way == 5:
            lines = lines[:at] + rng.choice(sources).split("\n")[at:]
        elif way == 6:
            lines[at] = mutated_word(lines[at], rng)
        elif way == 7:
            lines = "\n".join(lines)[: rng.randrange(len(text) + 1)].split("\n")
        else:
            place = rng.randrange(len(text) + 1)
            odd = rng.choice((*":{}[]&*!|>%@`'\"#-?,\t\r", "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "\x7f"))
            lines = (text[:place] + odd + text[place + 1 :]).split("\n")
        text = "\n".join(lines)
    return text


def changed_values(text: str, rng: random.Random) -> str:
    """A file whose values were replaced, removed, added or moved; it is YAML all the same."""
    values = copy.deepcopy(_values(text))
    for _ in range(rng.choice((1, 1, 2, 3))):
        section = rng.choice(SECTIONS)
        below = values.get(section)
        if not isinstance(below, dict):
            below = values[section] = {}
        way = rng.randrange(8)
        key = rng.choice(list(below) or ["x"])
        if way == 0:
            below.pop(key, None)
        elif way == 1:
            values[section] = plain(rng)
        elif way == 2:
            values[rng.choice(SECTIONS)] = below
        elif way < 5:
            below[key] = plain(rng)
        else:
            path = rng.choice(keys()[section]).split(".")
            if len(path) == 2 and not isinstance(below.get(path[0]), dict):
                below[path[0]] = {}
            (below[path[0]] if len(path) == 2 else below)[path[-1]] = plain(rng)
    return write_yaml(values)


@cache
def _values(text: str) -> Any:
    return read_yaml(text).value


def plain(rng: random.Random) -> Any:
    """A value as it is read."""
    return copy.deepcopy(_values(value(rng)))


def cases(sources: list[str]) -> st.SearchStrategy:
    """(text of a recipe, overrides) by hypothesis: values of the right type at the right place, and of any other."""
    names = [(section, key) for section, each in keys().items() for key in each]
    scalar = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(-3, 200)
        | st.floats()
        | st.floats(0, 1)
        | st.text(max_size=20)
        | st.sampled_from(["no", "steps", "layer", "2:4", "a.b", ".*", "lenet", "auto"])
    )
    anything = st.recursive(
        scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    )
    written = st.builds(
        lambda name, value: f"{name[0]}.{name[1]}={json.dumps(value)}", st.sampled_from(names), anything
    )
    typed = st.builds("{}={}".format, st.sampled_from(names).map(".".join), st.text(max_size=30))
    overrides = st.lists(written | typed | st.text(max_size=60), max_size=4)
    texts = (
        st.sampled_from(sources)
        | st.text(max_size=200)
        | st.dictionaries(
            st.sampled_from(SECTIONS),
            st.dictionaries(st.sampled_from(["task", "architecture", "seed", "r"]), anything),
        ).map(json.dumps)
    )
    return st.tuples(texts, overrides)
