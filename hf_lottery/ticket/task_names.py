"""The tasks that a ticket may name, and the classes of transformers that their models have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskName:
    """How transformers and the Hub call a task.

    Args:
        heads: what the name of a model's class ends with; the Auto class is `AutoModel` and the first of them.
        pipeline_tag: the name of the task on the Hub.
    """

    heads: tuple[str, ...]
    pipeline_tag: str

    @property
    def auto_class(self) -> str:
        """Name of the class of transformers that builds such a model."""
        return f"AutoModel{self.heads[0]}"


TASKS = {
    "image_classification": TaskName(("ForImageClassification",), "image-classification"),
    "text_classification": TaskName(("ForSequenceClassification",), "text-classification"),
    "causal_lm": TaskName(("ForCausalLM", "LMHeadModel"), "text-generation"),
}
UNKNOWN = TaskName(("",), "other")  # of a model of another class


def task_of(class_name: str) -> str | None:
    """The task of a model's class, such as `causal_lm` of `GPT2LMHeadModel`; None for other classes."""
    return next((name for name, task in TASKS.items() if class_name.endswith(task.heads)), None)
