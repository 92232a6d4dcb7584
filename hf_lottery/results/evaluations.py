"""The evaluations of one training by step, and the early-stop step among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# ends of other keys that the Trainer logs
_NOT_METRICS = ("_runtime", "_per_second", "_jit_compilation_time", "_model_preparation_time")


def evaluations(log_history: Sequence[dict[str, Any]], number: int | None = None) -> list[dict[str, float]]:
    """A training's evaluations, one dict per step: `step`, `eval_loss`, `eval_<metric>`, `test_loss`, `test_<metric>`.

    Args:
        log_history: of a TrainerState. The evaluation sets "validation" and "test" are distinguished by the names that
            the Trainer gives their values (`eval_validation_loss`, `eval_test_loss`); a single set is validation.
        number: of the round; records of other rounds are left out (a training from a rewind point at k > 0
            also has records of the dense network). None: all records.
    """
    by_step: dict[int, dict[str, float]] = {}
    for record in log_history:
        if number is not None and record.get("round", number) != number:
            continue
        step = record["step"]
        for key, value in sorted(record.items()):  # in the same order when it comes from a checkpoint
            if key.startswith("eval_") and not key.endswith(_NOT_METRICS):
                by_step.setdefault(step, {"step": step})[_label(key.removeprefix("eval_"))] = value
    return [by_step[step] for step in sorted(by_step)]


def _label(name: str) -> str:
    return name if name.startswith("test_") else "eval_" + name.removeprefix("validation_")


def summarise(
    log_history: Sequence[dict[str, Any]], number: int | None = None, final_step: int | None = None
) -> dict[str, float]:
    """End-of-training metrics and those at the early-stop step, the step of minimum validation loss.

    Early stopping is retroactive: training has run its full budget (Frankle & Carbin 2019, section 2).

    Args:
        log_history, number: as for `evaluations`.
        final_step: the evaluated step whose weights were kept; None: the last.

    Returns:
        `eval_loss`, `test_<metric>`, … at the end, and where validation was run `early_stop_step`,
        `early_stop_eval_loss`, `early_stop_test_<metric>`, …; empty without evaluations.
    """
    history = evaluations(log_history, number)
    if not history:
        return {}
    kept = next((entry for entry in history if entry["step"] == final_step), history[-1])
    summary = {key: value for key, value in kept.items() if key != "step"}
    with_loss = [entry for entry in history if math.isfinite(entry.get("eval_loss", math.nan))]
    if not with_loss:
        return summary
    best = min(with_loss, key=lambda entry: entry["eval_loss"])
    return summary | {f"early_stop_{key}": value for key, value in best.items()}
