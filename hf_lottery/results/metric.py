"""The metric that an experiment is judged by, as its result lines name it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_EARLY_STOP = "early_stop_test_"
# `evaluate` does not say whether a greater value of a metric is better. For these metrics a lower value is better, for
# all others a greater one.
LOWER_IS_BETTER = frozenset(
    {
        *("perplexity", "loss", "log_loss", "brier_score", "zero_one_loss", "hamming_loss", "error_rate"),
        *("mae", "mse", "rmse", "mape", "smape", "mase", "wer", "cer", "ter", "character", "charcut_mt"),
    }
)


@dataclass(frozen=True)
class Metric:
    """A metric's name, and which way it is better.

    Args:
        name: the name in `test_NAME` and `early_stop_test_NAME`.
        greater_is_better: such a metric counts as a fraction, like an accuracy: it is shown in percent, and its
            differences in points. Others (a loss, a perplexity) are shown as they are.
    """

    name: str
    greater_is_better: bool = True

    def __str__(self) -> str:
        return self.name


def metric_of(lines: Iterable[Mapping[str, Any]]) -> Metric:
    """The metric that the first line with `metric` and `greater_is_better` names.

    Lines without these fields, or with null in them, are from `find_ticket()`, which does not know them, or from an
    older version. Then the first `early_stop_test_` value that is not a loss is used; smaller is better for
    those in LOWER_IS_BETTER, greater for all others.
    """
    guess = "loss"
    for line in lines:
        name, greater_is_better = line.get("metric"), line.get("greater_is_better")
        if isinstance(name, str) and isinstance(greater_is_better, bool):  # both may be null in a ticket
            return Metric(name, greater_is_better)
        if guess == "loss":
            names = (key.removeprefix(_EARLY_STOP) for key in line if key.startswith(_EARLY_STOP))
            guess = next((name for name in names if name != "loss"), "loss")
    return Metric(guess, greater_is_better=guess not in LOWER_IS_BETTER)
