"""A recipe's `metrics`: metrics of `evaluate`, in addition to the task's own. Those in this folder need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from transformers import EvalPrediction

from hf_lottery.results.metric import LOWER_IS_BETTER
from hf_lottery.suggest import in_brackets
from hf_lottery.tasks import TaskData

BUNDLED = ("accuracy", "f1", "perplexity")
AVERAGED = ("f1", "precision", "recall")  # metrics of one class; with more than two classes, the mean over classes


def with_metrics(data: TaskData, names: Sequence[str]) -> TaskData:
    """The same data with more metrics: these first, then the task's own. Tickets are compared by the first.

    Args:
        data: from a task's `load`.
        names: bundled metrics, folders with an evaluate module, or names that `evaluate.load` finds on the Hub.

    Raises:
        ValueError: a metric is not found, or does not fit the task.
    """
    of_tokens, own = data.metric == "perplexity", data.compute_metrics
    for name in names:
        _require_fit(name, of_tokens)
    modules = {name: _load(name) for name in names}
    average = {} if of_tokens or data.train.num_labels <= 2 else {"average": "macro"}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        values = answer_losses(prediction) if of_tokens else classes(prediction)
        found: dict[str, float] = {}
        for name, module in modules.items():
            found |= module.compute(**values, **(average if _key(name) in AVERAGED else {}))
            if _key(name) not in found:
                raise ValueError(
                    f"the metric {name} returns {', '.join(found) or 'nothing'}, and no {_key(name)!r}: leave it out"
                )
        others = {key: value for key, value in own(prediction).items() if key not in found}
        return {key: float(value) for key, value in found.items()} | others

    first = _key(names[0])
    greater, notes = first not in LOWER_IS_BETTER, data.notes
    if greater and names[0] not in BUNDLED:
        notes = [*notes, f"Tickets are compared by {first}: a greater value is taken as better."]
    return replace(data, compute_metrics=compute, metric=first, greater_is_better=greater, notes=notes)


def classes(prediction: EvalPrediction) -> dict[str, Any]:
    """The inputs of a metric of classes: predicted and true classes, int64 [n] each."""
    return {"predictions": prediction.predictions, "references": prediction.label_ids}


def answer_losses(prediction: EvalPrediction) -> dict[str, Any]:
    """The inputs of `perplexity`, for each row: the summed loss of its answer's tokens, and their number."""
    sums = np.asarray(prediction.predictions, dtype=np.float64).reshape(-1, 3)
    return {"predictions": sums[:, 0], "references": sums[:, 2].astype(np.int64)}


def _require_fit(name: str, of_tokens: bool) -> None:
    """Raise ValueError unless the metric is one of the kind that the task predicts: tokens, or classes."""
    if (name == "perplexity") != of_tokens:
        allowed = "perplexity (loss and token_accuracy are always measured)" if of_tokens else "accuracy, f1, …"
        what = "answers' tokens" if of_tokens else "classes"
        raise ValueError(f"metrics has {name!r}, but this task predicts {what}: name {allowed}")


def _load(name: str) -> evaluate.EvaluationModule:
    where = str(Path(__file__).parent / name) if name in BUNDLED else name
    try:
        return evaluate.load(where, keep_in_memory=True)
    except (OSError, ImportError, ValueError, AttributeError) as error:
        hint = in_brackets(name, BUNDLED)
        raise ValueError(
            f"metrics has {name!r}{hint}, which is none of {', '.join(BUNDLED)}, no folder with an evaluate module, "
            f"and cannot be loaded from the Hub: {' '.join(str(error).split())[:200]}"
        ) from error


def _key(name: str) -> str:
    """The key of a metric's value: the last part of its name."""
    return Path(name).stem
