"""A recipe's `metrics`: the bundled evaluate modules against hand-counted values, and how they join a task's own."""

from __future__ import annotations

import math
import socket
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from hf_lottery import metrics
from hf_lottery.metrics import with_metrics
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.build import load_data
from hf_lottery.tasks import TaskData
from hf_lottery.tasks.lm_metrics import perplexity
from hf_lottery.tasks.tensors import accuracy

#                      class 0: TP 2, FP 1, FN 1 -> 4/6; class 1: TP 1, FP 1, FN 1 -> 2/4; class 2: TP 1 -> 1
PREDICTED, TRUE = [0, 0, 0, 1, 1, 2], [0, 0, 1, 0, 1, 2]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("a bundled metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def task(num_labels=3, compute=accuracy, metric="accuracy"):
    train = SimpleNamespace(num_labels=num_labels)
    return TaskData(train, None, None, collator=None, compute_metrics=compute, metric=metric)


def measured(names, predicted=PREDICTED, true=TRUE, trust_code=False, **about):
    data = with_metrics(task(**about), names, trust_code)
    return data, data.compute_metrics(EvalPrediction(predictions=np.array(predicted), label_ids=np.array(true)))


def test_the_first_metric_comes_first_and_judges_and_the_tasks_own_stays():
    data, found = measured(["f1"])
    assert list(found) == ["f1", "accuracy"]
    assert data.metric == "f1" and data.greater_is_better
    assert found["f1"] == pytest.approx((4 / 6 + 2 / 4 + 1) / 3)
    assert found["accuracy"] == 4 / 6
    assert list(measured(["accuracy", "f1"])[1]) == ["accuracy", "f1"]


def test_of_two_classes_f1_is_class_ones():
    found = measured(["f1"], [0, 1, 1, 1], [0, 0, 1, 1], num_labels=2)[1]
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert measured(["f1"], [0, 0], [0, 0], num_labels=2)[1]["f1"] == 0


def test_anyone_can_load_them_as_evaluate_modules():
    folder = metrics.__path__[0]
    assert evaluate.load(f"{folder}/accuracy").compute(predictions=[0, 1], references=[0, 0]) == {"accuracy": 0.5}
    assert evaluate.load(f"{folder}/f1").compute(predictions=[2, 1], references=[2, 2], average="macro")["f1"] == (
        pytest.approx((2 / 3 + 0) / 2)
    )
    with pytest.raises(ValueError, match="more classes than 0 and 1"):
        evaluate.load(f"{folder}/f1").compute(predictions=[2, 1], references=[2, 2])
    two_sequences = evaluate.load(f"{folder}/perplexity").compute(predictions=[2.0, 4.0], references=[1, 2])
    assert two_sequences["perplexity"] == pytest.approx(math.exp(6 / 3))


def test_perplexity_of_a_language_model_is_the_tasks_own_to_the_bit():
    sums = np.array([[2.5, 1, 3], [7.25, 0, 4]])
    prediction = EvalPrediction(predictions=sums, label_ids=None)
    data = with_metrics(task(compute=perplexity, metric="perplexity"), ["perplexity"])
    assert data.compute_metrics(prediction) == perplexity(prediction)
    assert not data.greater_is_better


def test_a_folder_of_ones_own_is_a_metric(tmp_path):
    source = (metrics.__path__[0] + "/accuracy/accuracy.py", tmp_path / "errors" / "errors.py")
    source[1].parent.mkdir()
    with open(source[0]) as text:
        source[1].write_text(text.read().replace('{"accuracy": ', '{"errors": 1 - '))
    assert measured([str(tmp_path / "errors")], trust_code=True)[1]["errors"] == pytest.approx(2 / 6)


@pytest.mark.parametrize(("name", "greater"), [("zero_one_loss", False), ("mae", False), ("agreement", True)])
def test_a_metric_from_elsewhere_says_which_way_is_better(name, greater, tmp_path):
    with open(metrics.__path__[0] + "/accuracy/accuracy.py") as source:
        text = source.read().replace('{"accuracy": ', f'{{"{name}": ' + ("" if greater else "1 - "))
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.py").write_text(text)
    data, worse = measured([str(tmp_path / name)], trust_code=True)
    assert data.greater_is_better is greater
    assert (
        measured([str(tmp_path / name)], TRUE, trust_code=True)[1][name] > worse[name]
    ) is greater  # TRUE as prediction: no error
    assert data.notes == ([f"Tickets are compared by {name}: a greater value is taken as better."] if greater else [])


def test_what_cannot_be_measured_is_said(monkeypatch):
    with pytest.raises(ValueError, match="'perplexity', but this task predicts classes"):
        with_metrics(task(), ["perplexity"])
    with pytest.raises(ValueError, match="'accuracy', but this task predicts answers' tokens: name perplexity"):
        with_metrics(task(metric="perplexity"), ["accuracy"])

    def not_there(*args, **kwargs):
        raise FileNotFoundError("no such module")

    monkeypatch.setattr(evaluate, "load", not_there)
    with pytest.raises(
        ValueError, match=r"metrics has 'acuracy' \(did you mean 'accuracy'\?\); a recipe may name acc"
    ):
        with_metrics(task(), ["acuracy"])
    with pytest.raises(ValueError, match=r"metrics has 'acuracy' \(did you mean 'accuracy'\?\)"):
        with_metrics(task(), ["acuracy"], trust_code=True)


@pytest.mark.parametrize("given", ["f1", "[1]", "[]", "{f1: yes}"])
def test_a_recipes_metrics_are_a_list_of_names(given):
    with pytest.raises(RecipeError, match="it must be a list of metrics' names"):
        load_recipe("quickstart", [f"metrics={given}"])


def test_a_recipe_with_metrics_is_measured_by_them_and_says_so_in_its_folder():
    recipe = load_recipe("quickstart", ["metrics=[f1]"])
    assert load_data(recipe).metric == "f1"
    assert recipe.resolved()["metrics"] == ["f1"]
    assert "metrics" not in load_recipe("quickstart").resolved()
