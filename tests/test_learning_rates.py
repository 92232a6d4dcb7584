"""Which learning rates a control, the dense network and the tickets are trained at."""

from __future__ import annotations

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from hf_lottery.learning_rates import DEFAULT, learning_rates

LISTS = {"random_mask": [0.01, 0.001], "set": 0.03, "rigl": None}


def test_without_lists_every_network_has_the_recipes_own():
    assert learning_rates(0.001, {}) is None
    assert learning_rates(0.001, {"random_mask": None}, tune=True) is None


@pytest.mark.parametrize(
    ("name", "alone", "tuned"),
    [
        ("random_mask", (0.01, None), (0.01, None)),  # its own list, in which the recipe's own rate is
        ("set", (0.03,), (0.03,)),
        ("rigl", (None,), (None, 0.01, 0.03)),
        ("ticket", (None,), (None, 0.01, 0.03)),
    ],
)
def test_lists_are_of_their_controls_and_tune_is_for_all_others(name, alone, tuned):
    assert learning_rates(0.001, LISTS).of(name) == alone
    assert learning_rates(0.001, LISTS, tune=True).of(name) == tuned


def test_a_recipe_without_a_learning_rate_has_that_of_training_arguments():
    assert next(field.default for field in fields(TrainingArguments) if field.name == "learning_rate") == DEFAULT
