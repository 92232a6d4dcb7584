"""Tasks: what a network learns. A task module turns a recipe's `data` into datasets, collator, metrics and model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from hf_lottery.suggest import in_brackets

TASKS = {
    "image_classification": "hf_lottery.tasks.image_classification",
    "text_classification": "hf_lottery.tasks.text_classification",
    "causal_lm": "hf_lottery.tasks.causal_lm",
}


@dataclass
class TaskData:
    """What a Trainer needs of a task, under the names of its arguments.

    Args:
        train: what is trained on.
        validation: held out of the training data; chooses the early-stop step.
        test: only ever measured on.
        collator: list of what a dataset gives -> batch.
        compute_metrics: EvalPrediction -> {metric: value}.
        preprocess_logits_for_metrics: shrinks logits on the device, before they are gathered.
        processing_class: a tokenizer or image processor, saved beside the model.
        metric: the metric of compute_metrics that tickets are judged by.
        greater_is_better: whether a greater `metric` is better.
        callbacks: of every training.
        notes: sentences about the data that whoever reads the results must know, such as how much was cut off.
    """

    train: Any
    validation: Any
    test: Any
    collator: Callable
    compute_metrics: Callable | None
    preprocess_logits_for_metrics: Callable | None = None
    processing_class: Any = None
    metric: str = "accuracy"
    greater_is_better: bool = True
    callbacks: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def task_module(name: str) -> ModuleType:
    """The module of a task, imported now: it exports `Data`, `load` and `build_model`.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"data.task is {name!r}; it must be one of {', '.join(TASKS)}{in_brackets(name, TASKS)}")
    return import_module(TASKS[name])
