"""YAML with lines: JSON, which YAML 1.2 contains, is the oracle for what values mean."""

from __future__ import annotations

import json
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_lottery.recipe.yaml import read_yaml, write_yaml


def nested(scalars: st.SearchStrategy, keys: st.SearchStrategy) -> st.SearchStrategy:
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


# letters that look like numbers, booleans, tags and aliases come up often
TEXT = st.text(alphabet="0123456789eE+-._:xonyfatrlu~*&!#'\" θé", max_size=8) | st.sampled_from(
    ["no", "1e-1", "2:4", "0o7", "true", "null", "", "~", "2020-01-01", "1_000", ".inf", "-", "a: b", "[1]"]
)
NUMBERS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
PLAIN_TEXT = st.text(alphabet=string.ascii_letters + string.digits + " .-+:", max_size=6)


@given(nested(NUMBERS | st.just(float("inf")) | TEXT, TEXT))
def test_what_is_written_is_read_back_by_us_and_by_a_yaml_1_1_reader(value):
    text = write_yaml(value)
    located = read_yaml(text)
    assert located.problems == []
    assert located.value == value
    assert yaml.safe_load(text) == value


@given(nested(NUMBERS | PLAIN_TEXT, st.text(string.ascii_letters, max_size=4)))
def test_json_means_what_json_says(value):
    located = read_yaml(json.dumps(value))
    assert located.problems == []
    assert located.value == value
    assert type(located.value) is type(value)


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-1", 0.1),
        ("1.2e-3", 0.0012),
        ("5e4", 50000.0),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("007", 7),
        ("0x10", 16),
        ("50_000", 50000),
        ("no", "no"),
        ("off", "off"),
        ("2:4", "2:4"),
        ("2020-01-01", "2020-01-01"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("True", True),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalars_are_read_by_yaml_1_2(text, value):
    read = read_yaml(f"key: {text}").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_every_value_knows_its_line():
    located = read_yaml("a:\n  b: 1\n\n  c:\n    - x\n    - {d: 2}\ne: 3\n")
    assert located.lines == {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 4,
        ("a", "c", "0"): 5,
        ("a", "c", "1"): 6,
        ("a", "c", "1", "d"): 6,
        ("e",): 7,
    }


def test_a_key_that_stands_twice_names_both_lines():
    located = read_yaml("a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert located.problems == [(4, ("a", "b"), "is there twice, on lines 2 and 4; remove one of them")]


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("a: 1\nb: [1,\n", 3, "is not YAML"),
        ("a: 1\nb: @x\n", 2, "cannot start"),
        ("a: &x 1\nb: *x\n", 2, "alias"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: 1\nb: .nan\n", 2, "'.nan'"),
        ("a: 1\nb: !!python/name:os.system x\n", 2, "python"),
        ("a: 1\nb: !mine x\n", 2, "!mine"),
        ("a: 1\n? [b]\n: 2\n", 2, "a key is text"),
        ("[" * 1200, 1, "nested too deeply"),
        ("\x01", 1, "is not YAML"),
    ],
)
def test_what_is_not_read_is_one_problem_with_its_line(text, line, words):
    (problem,) = read_yaml(text).problems
    assert problem[0] == line
    assert words in problem[2]
