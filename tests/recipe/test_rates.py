"""`learning_rate` of a control and `experiment.tune` in a recipe: what is taken, counted and refused."""

from __future__ import annotations

import json

import pytest
import yaml

from hf_lottery.layout import planned_networks
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import differences, load_recipe
from hf_lottery.recipe.sections import number_of_networks
from hf_lottery.recipe.summary import summary
from hf_lottery.results.written_recipe import WrittenRecipe

LISTED = "experiment.controls={random_mask: {learning_rate: [1e-3, 3e-3, 1e-2]}, random_reinit: {rounds: [2]}}"
TUNE = "experiment.tune=learning_rate"
SMALL = ["lottery.num_rounds=3", "experiment.replicates=2"]


def load(*overrides: str):
    return load_recipe("quickstart", [*SMALL, *overrides])


def problems(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as refused:
        load(*overrides)
    return [problem.message for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        ([LISTED], 4 + 3 * 3 + 1),
        ([LISTED, TUNE], 4 * 4 + 3 * 3 + 1 * 4),
        ([LISTED, TUNE, "training.learning_rate=0.003"], 4 * 3 + 3 * 3 + 1 * 3),
        (["experiment.controls={no_rewinding: {rounds: [2], learning_rate: [0.1, 0.2]}}"], 4 + 2 * 2),
        (["experiment.controls={rigl: {rounds: [2], per_ticket: 2, learning_rate: 0.1}}"], 4 + 2),
    ],
)
def test_every_network_is_planned_counted_and_known_to_reports(overrides, count):
    recipe = load(*overrides)
    controls, rates = recipe.experiment.controls, recipe.learning_rates()
    planned = planned_networks(3, 2, controls, rates)
    assert len(planned) == number_of_networks(3, 2, controls, rates) == 2 * count
    written = recipe.to_yaml()
    assert WrittenRecipe(written, yaml.safe_load(written)).planned() == planned
    assert f"{2 * count} to train" in summary(recipe)


def test_the_summary_names_the_rates():
    said = summary(load(LISTED, TUNE, "training.learning_rate=0.002"))
    assert "random_mask, learning rates 0.001, 0.003, 0.01; random_reinit at rounds 2, learning rates 0.001" in said
    assert "tuned      dense and tickets, learning rates 0.001, 0.002, 0.003, 0.01" in said


def test_the_resolved_recipe_has_them_and_is_another_recipe(tmp_path):
    recipe, path = load(LISTED, TUNE), tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    again = load_recipe(str(path))
    assert again.experiment == recipe.experiment and not differences(recipe, again)
    assert set(differences(load("experiment.controls={random_mask: {}, random_reinit: {rounds: [2]}}"), recipe)) == {
        "experiment.tune", "experiment.controls.random_mask.learning_rate",
    }  # fmt: skip
    assert "learning_rate" not in load().resolved()["experiment"].get("controls", {}).get("random_mask", {})
    assert "tune" not in load().resolved()["experiment"]


def test_rates_that_a_yaml_1_1_reader_has_made_texts_are_numbers_again(tmp_path):
    path = tmp_path / "recipe.json"
    values = load().resolved()
    values["experiment"] = {
        "controls": {"set": {"learning_rate": ["1e-3", "3e-3"]}, "rigl": {"learning_rate": "1e-2"}}
    }
    path.write_text(json.dumps(values))
    assert [control.learning_rate for control in load_recipe(str(path)).experiment.controls] == [[0.001, 0.003], 0.01]


@pytest.mark.parametrize(
    "rates",
    [
        *("[]", "[0.1, 0.2, 0.1]", "[1, 1.0]", f"{[0.001 * n for n in range(1, 12)]}", "0", "[0.1, -0.1]", "1e20"),
        *("high", "true", "[0.1, true]", "[[0.1]]", "{a: 0.1}", "[0.1, null]", "['0.1']"),
    ],
)
def test_what_is_no_learning_rate_is_refused_in_one_sentence(rates):
    (said,) = problems(f"experiment.controls={{random_mask: {{learning_rate: {rates}}}}}")
    assert said.startswith("experiment.controls.random_mask.learning_rate")
    assert said.endswith(
        "it must be a learning rate above 0, or a list of 1 to 10 different ones, such as [0.001, 0.003, 0.01]"
    )


@pytest.mark.parametrize("rates", [".inf", "[0.1, .nan]", "[1e999]"])
def test_what_is_not_finite_is_refused(rates):
    assert len(problems(f"experiment.controls={{random_mask: {{learning_rate: {rates}}}}}")) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([TUNE], "experiment.tune is learning_rate, and no control lists learning rates: add them, as in"),
        (["experiment.tune=weight_decay"], "experiment.tune is 'weight_decay'; it must be"),
        ([LISTED, "lottery.rewind_step=5"], "learning_rate is for lottery.rewind_step 0, and rewind_step is 5"),
        ([LISTED, TUNE, "lottery.rewind_step=0.1"], "is for lottery.rewind_step 0, and rewind_step is 0.1"),
        ([LISTED, "lottery.rewind_step=auto", "lottery.rewind_steps=[0, 5]"], "and rewind_step is auto"),
        (
            [LISTED, "training.lr_scheduler_type=polynomial", "training.lr_scheduler_kwargs={lr_end: 0.001}"],
            "has 0.001, and training.lr_scheduler_type polynomial ends at 0.001",
        ),
        ([LISTED.replace("learning_rate:", "learning_rates:")], "did you mean 'learning_rate'"),
    ],
)
def test_what_learning_rates_do_not_go_with_is_one_sentence(overrides, said):
    (found,) = problems(*overrides)
    assert said in found


def test_too_many_networks_are_counted_with_their_rates():
    (said,) = problems(LISTED, TUNE, "experiment.replicates=9999")
    assert "the recipe plans 289,971 networks" in said
