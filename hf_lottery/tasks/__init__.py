"""Tasks: what a network learns. A task's module turns a recipe's section `data` into datasets, metrics and a model.

To add a task:
1. Write its module: `Data` (a pydantic model of the section `data`), `load(data, model_section) -> TaskData` and
   `build_model(model_section, task_data, seed) -> PreTrainedModel`. image_classification.py is an example.
2. Add its record to TASKS in hf_lottery/task_records.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from hf_lottery.suggest import in_brackets
from hf_lottery.task_records import TASKS


@dataclass
class TaskData:
    """What a Trainer needs of a task, under the names of Trainer's arguments.

    Args:
        train: the training data set.
        validation: held out of the training data; it determines the early-stop step.
        test: used for measurements only.
        collator: list of data set items -> batch.
        compute_metrics: EvalPrediction -> {metric: value}.
        preprocess_logits_for_metrics: reduces logits on the device, before they are gathered.
        processing_class: a tokenizer or image processor, saved beside the model.
        metric: the metric of compute_metrics by which tickets are compared.
        greater_is_better: True where a greater value of `metric` is better.
        callbacks: added to the Trainer of every network.
        other_text: the Blocks of text that the task does not hold, on which the loss is measured before and after
            training; None: it is not measured.
        notes: sentences about the data for the reader of the results, such as how many texts were cut.
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
    other_text: Any = None
    notes: list[str] = field(default_factory=list)


def task_module(name: str) -> ModuleType:
    """Import the module of a task.

    Raises:
        ValueError: there is no task of this name.
    """
    if name not in TASKS:
        raise ValueError(f"data.task is {name!r}; it must be one of {', '.join(TASKS)}{in_brackets(name, TASKS)}")
    return import_module(TASKS[name].module)
