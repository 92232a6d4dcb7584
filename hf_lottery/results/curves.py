"""Learning curves: the evaluations of every unit, read from its trainer_state.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from hf_lottery.results.evaluations import evaluations
from hf_lottery.results.results import Line, unit_folder, unit_of

Curve = dict[int, list[float]]  # step -> a value for every unit that was evaluated there


def learning_curve(output_dir: str | os.PathLike, lines: Iterable[Line], key: str) -> Curve:
    """Step -> the values of `key` in the units' log histories, such as `test_accuracy`.

    Only steps at which every unit was evaluated are kept, so that a mean never changes whom it is over. Units
    without a readable trainer_state.json are left out.
    """
    histories = []
    for line in lines:
        path = unit_folder(Path(output_dir), unit_of(line)) / "trainer_state.json"
        try:
            history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        except (OSError, ValueError, KeyError):
            continue
        values = {entry["step"]: entry[key] for entry in evaluations(history, line["round"]) if key in entry}
        if values:
            histories.append(values)
    if not histories:
        return {}
    shared = set.intersection(*(set(values) for values in histories))
    return {step: [values[step] for values in histories] for step in sorted(shared)}
