"""The folder of one trained network: what is in it, when it counts as finished, and its line of results."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME

from hf_lottery.mask import Mask
from hf_lottery.ticket.rewind_point import RewindPoint, write_tensors

MASK_FILE = "mask.safetensors"
TRAINED_FILE = "trained.safetensors"
RESULT_FILE = "result.json"
SECONDS_FILE = "seconds"  # how long an unfinished training had taken at its last checkpoint


class UnitFolder:
    """The folder of one trained network. It is finished when `result.json` is there: that file is written last.

    Args:
        path: for the ticket of round 3 `round-03`, for a control of it `round-03/random_reinit-0`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def finished(self) -> bool:
        """Whether the network was trained to the end and everything about it is on disk."""
        return (self.path / RESULT_FILE).is_file()

    def result(self) -> dict[str, Any]:
        """The network's line of results.jsonl."""
        return json.loads((self.path / RESULT_FILE).read_text(encoding="utf-8"))

    def mask(self) -> Mask:
        """The mask that the network was trained under."""
        return read_mask(self.path / MASK_FILE)

    def trained(self) -> RewindPoint:
        """The weights at the end of training."""
        return RewindPoint.load(self.path / TRAINED_FILE)

    def finish(self, mask: Mask, trained: RewindPoint, result: dict[str, Any]) -> None:
        """Write all three files; `result.json` last, so that a crash leaves the folder unfinished, never half-true."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_mask(mask, self.path / MASK_FILE)
        trained.save(self.path / TRAINED_FILE)
        write_text(self.path / RESULT_FILE, json.dumps(result, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # workers may write the same file
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_mask(mask: Mask, path: str | os.PathLike) -> None:
    """Write a mask as packed bits: one uint8 tensor a name, the shapes in the file's metadata."""
    shapes = {name: list(tensor.shape) for name, tensor in mask.items()}
    write_tensors(path, mask.pack(), {"shapes": json.dumps(shapes)})


def read_mask(path: str | os.PathLike) -> Mask:
    """Read what `write_mask` wrote."""
    with safe_open(path, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        return Mask.unpack({name: file.get_tensor(name) for name in shapes}, shapes)


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest whole checkpoint in `folder`: Trainer writes `trainer_state.json` last, after all that it goes with.

    (transformers' `get_last_checkpoint` goes by names alone, and takes one that a kill left half-written.)
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


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
