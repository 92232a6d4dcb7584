"""One record for each task: the facts that several rooms need, without importing the task's own module."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Task:
    """The facts about a task.

    Args:
        module: import path of the task's module. It exports `Data`, `load` and `build_model`.
        auto_class: name of the transformers class that loads a model of this task.
        pipeline_tag: the name of the task on the Hub.
        language_model: True where the recipe's section `model` alone defines the network, without a head whose size
            depends on the data. Such a network can be counted before any data are read, loaded in 4 or 8 bits, and
            merged with its adapter. Its module also exports `load_rows`, and its `Data` has `max_length` and
            `other_text`.
    """

    module: str
    auto_class: str
    pipeline_tag: str
    language_model: bool = False

    def auto(self) -> Any:
        """The transformers class named by `auto_class`, imported now."""
        return getattr(import_module("transformers"), self.auto_class)


TASKS = {
    "image_classification": Task(
        "hf_lottery.tasks.image_classification", "AutoModelForImageClassification", "image-classification"
    ),
    "text_classification": Task(
        "hf_lottery.tasks.text_classification", "AutoModelForSequenceClassification", "text-classification"
    ),
    "causal_lm": Task("hf_lottery.tasks.causal_lm", "AutoModelForCausalLM", "text-generation", language_model=True),
}
UNKNOWN = Task("", "AutoModel", "other")  # for a model that no task loads


def task_of(class_name: str) -> str | None:
    """The task of a model's class, such as `causal_lm` of `GPT2LMHeadModel`; None for other classes."""
    for name, task in TASKS.items():
        ends = (task.auto_class.removeprefix("AutoModel"), *(["LMHeadModel"] if task.language_model else []))
        if class_name.endswith(ends):
            return name
    return None
