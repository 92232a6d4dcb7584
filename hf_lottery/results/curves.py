"""Learning curves: the evaluations of every network, read from its trainer_state.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from hf_lottery.finished import whole_file
from hf_lottery.layout import STATE_FILE, Network
from hf_lottery.results.diverged import Diverged
from hf_lottery.results.evaluations import evaluations
from hf_lottery.results.results import Line

Curve = dict[int, list[float]]  # step -> a value for every network that was evaluated there


def learning_curve(output_dir: str | os.PathLike, lines: Iterable[Line], key: str) -> Curve:
    """Step -> the values of `key`, such as `test_accuracy`, in the networks' log histories.

    Only steps at which every network was evaluated are kept, so that all means are over the same networks. Networks
    without a readable trainer_state.json are left out, and networks that diverged are.
    """
    whole = [line for line in lines if Diverged.of_line(line) is None]
    curves = [curve for line in whole if (curve := _values(output_dir, line, key))]
    if not curves:
        return {}
    shared = set.intersection(*(set(curve) for curve in curves))
    return {step: [curve[step] for curve in curves] for step in sorted(shared)}


def _values(output_dir: str | os.PathLike, line: Line, key: str) -> dict[int, float]:
    try:
        path = whole_file(Network.of_line(line).folder(output_dir), STATE_FILE)
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {entry["step"]: entry[key] for entry in evaluations(history, line["round"]) if key in entry}
