"""What no setting takes, in whatever section it is; what a YAML 1.1 reader changed; messages on one line."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import yaml
from transformers import TrainingArguments

from hf_lottery.bundled import bundled_recipes
from hf_lottery.config import LotteryConfig
from hf_lottery.printable import LONGEST_LINE, one_line, some_lines
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.ranges import RANGES, Range
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.recipe.settings import members_of, settings_of
from hf_lottery.runner.check import check


def refused(*overrides: str, recipe: str = "quickstart") -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


NUMBERS = [
    (section, name)
    for section in ("training", "peft", "quantization", "lottery")
    for name, hint in settings_of(section).items()
    if {int, float} & set(members_of(hint))
]


@pytest.mark.parametrize(("section", "name"), NUMBERS, ids=".".join)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999", "-3", "-0.5", "9" * 40, "0x" + "f" * 5000])
def test_no_number_is_infinite_nan_negative_or_huge(section, name, value):
    assert f"{section}.{name}" in refused(f"{section}.{name}={value}")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.eval_steps=0", "it must be above 0"),
        ("training.adam_beta2=1", "0 or more and below 1"),
        ("training.label_smoothing_factor=2", "0 or more, up to 1"),
        ("training.seed=4294967296", "up to 4,294,967,295"),
        (
            "training.lr_scheduler_kwargs={a: .inf}",
            "training.lr_scheduler_kwargs.a is inf; it must be a finite number",
        ),
        ("peft={r: 8, lora_dropout: 1}", "peft.lora_dropout is 1; it must be 0 or more and below 1"),
        ("peft={r: 0}", "peft.r is 0; it must be 1 or more"),
        ("peft={rank_pattern: {a: -1}}", "peft.rank_pattern.a is -1"),
        ("peft={target_modules: '('}", "peft.target_modules is '(', which is no regular expression"),
        ("peft={rank_pattern: {'[': 1}}", "no regular expression"),
        ("lottery.target_modules='('", "lottery.target_modules is '(', which is no regular expression"),
        ("lottery.exclude_modules='a{99999999999}'", "no regular expression"),
        ("lottery.rewind_steps=[-1]", "lottery.rewind_steps has -1"),
        ("lottery.pattern=²:³", "lottery.pattern is '²:³'"),
        ("lottery.num_rounds=999999999", "0 or more, up to 10,000"),
        ("experiment.replicates=9999999999", "10000 or less"),
        ("data.split_seed=-1", "data.split_seed is -1; it must be 0 or more"),
        ("data={task: image_classification, name: x, std: [0]}", "data.std.0 is 0; it must be above 0"),
        ('training.run_name="\\0"', "with a character that is not printable"),
        ('model.architecture="\\ud800"', "with a character that is not printable"),
    ],
)
def test_ranges_of_single_settings(override, words):
    assert words in refused(override)


def test_a_range_is_of_a_setting_that_there_is():
    for section in ("training", "peft"):
        assert RANGES[section].keys() <= settings_of(section).keys()
    assert 0 not in Range(above=True) and 1 not in Range(most=1, below=True) and 1 in Range(most=1)


@pytest.mark.parametrize("field", [field for field in fields(TrainingArguments) if field.init], ids=lambda f: f.name)
def test_the_defaults_of_the_library_are_in_range(field):
    if type(field.default) in (int, float):
        load_recipe("quickstart", [f"training.{field.name}={field.default}"])


def test_as_many_networks_as_can_be_planned():
    many = ("experiment.replicates=1000", "experiment.controls=[]", "lottery.num_rounds=99")
    assert "100000 to train" in check(load_recipe("quickstart", many))
    assert "the recipe plans 101,000 networks" in refused(*many[:2], "lottery.num_rounds=100")
    assert "the recipe plans" in refused(
        "experiment.controls={one_shot: {per_ticket: 9999, rounds: [1, 2, 3]}}", "experiment.replicates=10"
    )


def test_the_last_replicate_has_a_seed_too():
    load_recipe("quickstart", ["training.seed=4294967293", "experiment.replicates=3"])
    assert "replicate 3 would have the seed 4294967296" in refused(
        "training.seed=4294967293", "experiment.replicates=4"
    )


@pytest.mark.parametrize(
    "override",
    [
        "a." * 3000 + "b=1",
        "training.x=" + "[" * 3000,
        "training.x=" + "[" * 30 + "]" * 30,
        "model.config.a" + ".b" * 50 + "=1",
    ],
)
def test_deep_nesting_is_a_sentence(override):
    assert "nested too deeply" in refused(override)


def test_a_huge_file_is_a_sentence(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: " + "x" * (1 << 18))
    assert refused(recipe=str(path)) == f"{path}:1: has 262,147 characters; a recipe has at most 262,144"
    path.write_text("a: [" + "1, " * 6000 + "1]")
    assert "has more than 5,000 values" in refused(recipe=str(path))


@pytest.mark.parametrize("text", ["model: [", "\x00", "!!python/name:os.system ''", "a: *b", "{a: b", "\tx: 1"])
def test_a_file_that_is_not_yaml_gets_that_sentence_alone(text, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    (problem,) = refused("training.seed=1", "x=3", recipe=str(path)).splitlines()
    assert problem.startswith(f"{path}:")


@pytest.mark.parametrize("name", bundled_recipes())
@pytest.mark.parametrize("dump", [yaml.dump, json.dumps], ids=["yaml", "json"])
def test_a_recipe_read_and_written_by_a_yaml_1_1_reader_means_the_same(name, dump, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(dump(yaml.safe_load(bundled_recipes()[name].read_text())))
    original, again = load_recipe(name).resolved(), load_recipe(str(path)).resolved()
    assert again == original


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("training.save_strategy=false", "training.save_strategy=no"),
        ("training.eval_strategy=false", "training.eval_strategy=no"),
        ("training.logging_strategy=false", "training.logging_strategy=no"),
        ("training.report_to=false", "training.report_to=none"),
        ("training.report_to=no", "training.report_to=none"),
        ("training.learning_rate='1e-3'", "training.learning_rate=0.001"),
        ("training.warmup_steps='5E-2'", "training.warmup_steps=0.05"),
        ("lottery.pruning_rates={a: '1e-1'}", "lottery.pruning_rates={a: 0.1}"),
        ("lottery.rewind_step='1e-1'", "lottery.rewind_step=0.1"),
        ("lottery.pattern=124", "lottery.pattern=2:4"),  # base sixty
        ("lottery.pattern=62", "lottery.pattern=1:2"),
    ],
)
def test_values_that_a_yaml_1_1_reader_has_changed(written, meant):
    assert load_recipe("quickstart", [written]).resolved() == load_recipe("quickstart", [meant]).resolved()


@pytest.mark.parametrize("override", ["training.save_strategy=true", "lottery.pattern=7", "training.bf16=yes"])
def test_what_no_author_meant_is_refused(override):
    assert override.partition("=")[0] in refused(override)


def test_a_list_that_is_too_short_is_named():
    assert "peft.layer_replication.1.1 is missing" in refused("peft={r: 8, layer_replication: [[0, 1], [2]]}")


def test_null_that_is_not_the_default_is_written_and_read_again(tmp_path):
    recipe = load_recipe("qwen2.5/0.5b-lora-alpaca", ["data.input_column=null"])
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)).data.input_column is None
    assert "input_column" not in recipe.resolved()["model"] and "test_split" not in recipe.resolved()["data"]


def test_messages_are_printable_and_not_too_long():
    evil = "\x1b[2J\u202e\u200b\x07\r\n"
    assert one_line(evil) == r"\x1b[2J\u202e\u200b\x07\r\n"
    for override in (
        f"training.{evil}=1",
        f"{evil}",
        f"training.run_name={evil}x: ]",
        "x" * 10**6,
        "training.seed=" + "9" * 10**5,
    ):
        for line in refused(override).splitlines():
            assert line.isprintable() and len(line) < 2 * LONGEST_LINE
    assert len(one_line("x" * 10**7)) < LONGEST_LINE + 100
    assert some_lines("a\n" * 500).splitlines()[-1] == "… and 401 more lines"


@pytest.mark.parametrize(
    "arguments",
    [{"rewind_step": 10**400}, {"pruning_rate": 10**400}, {"num_rounds": 10**400}, {"rewind_steps": [-1]},
     {"target_modules": "("}, {"pattern": "²:³"}, {"pruning_rates": [1]}, {"rewind_step": float("inf")}],
)  # fmt: skip
def test_lottery_config_refuses_them_in_python_too(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name} "):
        LotteryConfig(**arguments)
