"""A recipe's `metrics`: metrics of `evaluate`, in addition to the task's own. Those in this folder need no network.

A metric from elsewhere is Python code: it is run only if the person who runs the recipe says so, and then it is named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from transformers import EvalPrediction

from hf_lottery.distributed.processes import is_main
from hf_lottery.printable import one_line
from hf_lottery.results.metric import LOWER_IS_BETTER
from hf_lottery.suggest import in_brackets
from hf_lottery.tasks import TaskData

TRUST_FLAG = "--trust-metric-code"
BUNDLED = ("accuracy", "f1", "perplexity")
AVERAGED = ("f1", "precision", "recall")  # metrics of one class; with more than two classes, the mean over classes


def with_metrics(data: TaskData, names: Sequence[str], trust_code: bool = False) -> TaskData:
    """The same data with more metrics: these first, then the task's own. Tickets are compared by the first.

    Args:
        data: from a task's `load`.
        names: bundled metrics; with `trust_code` also folders with an evaluate module, or names that `evaluate.load`
            finds on the Hub. Their code is run, which is said on stderr.
        trust_code: whether the person who runs this has allowed it: --trust-metric-code of the command line.

    Raises:
        ValueError: a metric is not found, does not fit the task, or is code that is not trusted.
    """
    of_tokens, own = data.metric == "perplexity", data.compute_metrics
    for name in names:
        if problem := untrusted(name, trust_code):
            raise ValueError(problem)
        _require_fit(name, of_tokens)
    modules = {name: _load(name) for name in names}
    average = {} if of_tokens or data.train.num_labels <= 2 else {"average": "macro"}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        values = answer_losses(prediction) if of_tokens else classes(prediction)
        found: dict[str, float] = {}
        for name, module in modules.items():
            found |= _computed(name, module, {**values, **(average if _key(name) in AVERAGED else {})})
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


def untrusted(name: str, trust_code: bool) -> str | None:
    """Why a metric is not run, as a sentence; None if it is one of this package, or its code is trusted."""
    if name in BUNDLED or trust_code:
        return None
    return (
        f"metrics has {name[:200]!r}{in_brackets(name, BUNDLED)}; a recipe may name {', '.join(BUNDLED)}: any other "
        f"metric is code, which is run only with {TRUST_FLAG} in the command line"
    )


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
    if name in BUNDLED:
        return evaluate.load(str(Path(__file__).parent / name), keep_in_memory=True)
    if is_main():
        print(f"hf-lottery: {TRUST_FLAG}: runs {one_line(_code_of(name))}", file=sys.stderr)
    try:
        return evaluate.load(name, keep_in_memory=True)
    except Exception as error:  # it is other people's code
        hint = in_brackets(name, BUNDLED)
        raise ValueError(
            f"metrics has {name!r}{hint}, which is none of {', '.join(BUNDLED)}, and no metric can be loaded from "
            f"{_code_of(name)} ({_said(error)}): name a folder NAME with NAME.py, which defines an evaluate.Metric"
        ) from error


def _code_of(name: str) -> str:
    """What `evaluate.load` runs for a name: a file, or a metric on the Hub."""
    path = Path(name)
    for file in (path, path / f"{path.name}.py"):
        if file.is_file():
            return f"the code in {file.absolute()}"
    return f"the code of the metric {name!r} on the Hub"


def _computed(name: str, module: evaluate.EvaluationModule, inputs: dict[str, Any]) -> dict[str, float]:
    """The values of one metric. An error in other people's code is a ValueError that names the metric."""
    if name in BUNDLED:
        return module.compute(**inputs)
    try:
        return {key: float(value) for key, value in module.compute(**inputs).items()}
    except Exception as error:
        raise ValueError(f"the metric {name!r} failed ({_said(error)}): mend it, or leave it out") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _key(name: str) -> str:
    """The key of a metric's value: the last part of its name."""
    return Path(name).stem
