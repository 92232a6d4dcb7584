"""What one training measured of itself: its evaluations by step, and the early-stop step among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def evaluations(log_history: Sequence[dict[str, Any]], number: int | None = None) -> list[dict[str, float]]:
    """A training's evaluations, a dict a step: `step`, `eval_loss`, `eval_<metric>`, `test_loss`, `test_<metric>`.

    Args:
        log_history: a TrainerState's. With several evaluation sets "validation" and "test" are told apart by the
            names that the Trainer gives them (`eval_validation_loss`, `eval_test_loss`); a single one is validation.
        number: of the round: leave out the records of another, as of the dense network before a late rewind.
    """
    by_step: dict[int, dict[str, float]] = {}
    for record in log_history:
        if number is not None and record.get("round", number) != number:
            continue
        step = record["step"]
        for key, value in record.items():
            if not key.startswith("eval_") or key.endswith(("_runtime", "_per_second", "_jit_compilation_time")):
                continue
            name = key.removeprefix("eval_")
            if name.startswith("test_"):
                label = name
            else:
                label = "eval_" + name.removeprefix("validation_")
            by_step.setdefault(step, {"step": step})[label] = value
    return [by_step[step] for step in sorted(by_step)]


def summarise(
    log_history: Sequence[dict[str, Any]], number: int | None = None, final_step: int | None = None
) -> dict[str, float]:
    """End-of-training metrics and those at the early-stop step, the step of minimum validation loss.

    Early stopping is retroactive: training has run its full budget (Frankle & Carbin 2019, section 2).

    Args:
        log_history, number: as of `evaluations`.
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
    if with_loss:
        best = min(with_loss, key=lambda entry: entry["eval_loss"])
        summary["early_stop_step"] = best["step"]
        summary.update({f"early_stop_{key}": value for key, value in best.items() if key != "step"})
    return summary
