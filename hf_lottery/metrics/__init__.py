"""A recipe's `metrics`: metrics of `evaluate` beside the task's own. Those in this folder need no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from transformers import EvalPrediction

from hf_lottery.suggest import in_brackets
from hf_lottery.tasks import TaskData

BUNDLED = ("accuracy", "f1", "perplexity")
LOWER_IS_BETTER = ("perplexity",)
AVERAGED = ("f1", "precision", "recall")  # of one class; over more than two it is their mean that is meant


def with_metrics(data: TaskData, names: Sequence[str]) -> TaskData:
    """The same data, measured by these metrics and then by the task's own; tickets are judged by the first.

    Args:
        data: of a task.
        names: bundled ones, folders with an evaluate module, or what `evaluate.load` finds on the Hub.

    Raises:
        ValueError: a metric cannot be had, or does not go with the task.
    """
    of_tokens, own = data.metric == "perplexity", data.compute_metrics
    for name in names:
        if (name == "perplexity") != of_tokens:
            allowed = "perplexity (loss and token_accuracy are always measured)" if of_tokens else "accuracy, f1, …"
            what = "answers' tokens" if of_tokens else "classes"
            raise ValueError(f"metrics has {name!r}, and what is predicted here are {what}: name {allowed}")
    modules = {name: _load(name) for name in names}
    average = {} if of_tokens or data.train.num_labels <= 2 else {"average": "macro"}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        values = answer_losses(prediction) if of_tokens else classes(prediction)
        found: dict[str, float] = {}
        for name, module in modules.items():
            found |= module.compute(**values, **(average if _key(name) in AVERAGED else {}))
            if _key(name) not in found:
                raise ValueError(
                    f"the metric {name} gives {', '.join(found) or 'nothing'}, and no {_key(name)!r}: leave it out"
                )
        return {**{key: float(value) for key, value in found.items()}, **_rest(own(prediction), found)}

    first = _key(names[0])
    return replace(data, compute_metrics=compute, metric=first, greater_is_better=first not in LOWER_IS_BETTER)


def classes(prediction: EvalPrediction) -> dict[str, Any]:
    """What a metric of classes is given: predicted and true ones, int64 [n] each."""
    return {"predictions": prediction.predictions, "references": prediction.label_ids}


def answer_losses(prediction: EvalPrediction) -> dict[str, Any]:
    """What `perplexity` is given: per row the summed loss of its answer's tokens, and how many these are."""
    sums = np.asarray(prediction.predictions, dtype=np.float64).reshape(-1, 3)
    return {"predictions": sums[:, 0], "references": sums[:, 2].astype(np.int64)}


def _load(name: str) -> evaluate.EvaluationModule:
    where = str(Path(__file__).parent / name) if name in BUNDLED else name
    try:
        return evaluate.load(where, keep_in_memory=True)
    except (OSError, ImportError, ValueError, AttributeError) as error:
        hint = in_brackets(name, BUNDLED)
        raise ValueError(
            f"metrics has {name!r}{hint}, which is none of {', '.join(BUNDLED)}, no folder with an evaluate module, "
            f"and could not be had from the Hub: {' '.join(str(error).split())[:200]}"
        ) from error


def _key(name: str) -> str:
    """What a metric calls its value: the last part of its name."""
    return Path(name).stem


def _rest(own: Mapping[str, float], found: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in own.items() if key not in found}
