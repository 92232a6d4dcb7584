"""Results: the finished units of an output folder, read from its results.jsonl, and which units are missing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TICKET = "ticket"
# controls in the order in which tables and plots show them
CONTROLS = (
    "random_reinit",
    "random_mask",
    "no_rewinding",
    "learning_rate_rewinding",
    "one_shot",
    "shuffled_weights",
    "signed_reinit",
)
LOWER_IS_BETTER = ("perplexity", "loss")
_EARLY_STOP = "early_stop_test_"

Line = Mapping[str, Any]
Unit = tuple[int, int, str, int]  # replicate, round, control, sample


@dataclass
class Results:
    """The finished units of one experiment.

    Args:
        lines: one mapping a unit, as in results.jsonl; of a unit that was written twice, the last.
        notes: what was skipped in reading, a sentence each.
    """

    lines: list[Line]
    notes: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The task's metric, such as `accuracy`: the name in `test_accuracy` and `early_stop_test_accuracy`."""
        for line in self.lines:
            for key in line:
                if key.startswith(_EARLY_STOP) and key != _EARLY_STOP + "loss":
                    return key.removeprefix(_EARLY_STOP)
        return "loss"

    @property
    def greater_is_better(self) -> bool:
        return self.metric not in LOWER_IS_BETTER

    def replicates(self) -> list[int]:
        return sorted({line["replicate"] for line in self.lines})

    def controls(self) -> list[str]:
        """The controls that have a finished unit, without the ticket itself, in their fixed order."""
        found = {line["control"] for line in self.lines} - {TICKET}
        return [name for name in CONTROLS if name in found] + sorted(found - set(CONTROLS))

    def rounds(self, control: str = TICKET) -> list[int]:
        return sorted({line["round"] for line in self.lines if line["control"] == control})

    def select(self, control: str, round: int) -> list[Line]:
        return [line for line in self.lines if line["control"] == control and line["round"] == round]

    def values(self, key: str, control: str = TICKET, round: int = 0) -> dict[int, float]:
        """Replicate -> the value of `key`, averaged over the replicate's samples.

        A replicate's samples share its initialisation and data order, so they are one observation, not several.
        Units whose line lacks the value, or holds null or NaN, are left out.
        """
        samples: dict[int, list[float]] = {}
        for line in self.select(control, round):
            value = line.get(key)
            if isinstance(value, (int, float)) and not math.isnan(value):
                samples.setdefault(line["replicate"], []).append(float(value))
        return {replicate: sum(found) / len(found) for replicate, found in sorted(samples.items())}

    def density(self, control: str = TICKET, round: int = 0) -> float:
        """Mean over the units of kept / all weights, as counted from their masks; NaN without a unit.

        Rounds, not densities, say which units belong together: under a global scope two replicates may differ by a
        weight.
        """
        densities = [line["density"] for line in self.select(control, round)]
        return sum(densities) / len(densities) if densities else math.nan


def read_results(output_dir: str | os.PathLike) -> Results:
    """Read `results.jsonl` of an output folder; a line that is not whole is skipped, with a note.

    Raises:
        FileNotFoundError: the folder, or its results.jsonl, is not there.
        ValueError: nothing in it has finished.
    """
    path = Path(output_dir) / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"'{output_dir}' has no results.jsonl, so nothing has finished there; "
            "give the output folder of a run (training.output_dir), or run the recipe first"
        )
    raw = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    units: dict[Unit, Line] = {}
    notes = []
    for number, text in enumerate(raw, start=1):
        if not text.strip():
            continue
        line = _parse(text)
        if line is None:
            last = number == len(raw)
            why = "is torn (the run was stopped while writing it)" if last else "is not a unit's result"
            notes.append(f"Line {number} of results.jsonl {why} and was skipped.")
            continue
        units[unit_of(line)] = line
    if not units:
        raise ValueError(
            f"nothing has finished in '{output_dir}' yet: results.jsonl holds no whole line; run it again"
        )
    lines = [units[unit] for unit in sorted(units)]
    _require_one_recipe(lines, output_dir)
    return Results(lines, notes + _shared_seeds(lines))


def _require_one_recipe(lines: list[Line], output_dir: str | os.PathLike) -> None:
    """Means over replicates of two recipes mean nothing: refuse them where the lines give them away."""
    first: dict[tuple, Line] = {}
    for line in lines:
        for key, group in (("prunable", ()), ("steps", (line["control"], line["round"]))):
            other = first.setdefault((key, *group), line)
            if line.get(key) != other.get(key):
                raise ValueError(
                    f"the units of '{output_dir}' are not of one recipe: {key} is {other.get(key)} in "
                    f"{unit_name(unit_of(other))}, and {line.get(key)} in {unit_name(unit_of(line))}; "
                    "give each recipe an output_dir of its own"
                )


def _shared_seeds(lines: list[Line]) -> list[str]:
    by_seed: dict[int, set[int]] = {}
    for line in lines:
        if "seed" in line:
            by_seed.setdefault(line["seed"], set()).add(line["replicate"])
    return [
        f"Replicates {', '.join(map(str, sorted(replicates)))} share seed {seed}: one observation, not several."
        for seed, replicates in by_seed.items()
        if len(replicates) > 1
    ]


def _parse(text: str) -> Line | None:
    try:
        line = json.loads(text)
        whole = isinstance(line, dict) and unit_of(line) and math.isfinite(line["density"])
    except (ValueError, KeyError, TypeError):
        return None
    return line if whole else None


def unit_of(line: Line) -> Unit:
    """(replicate, round, control, sample): what names a unit."""
    return int(line["replicate"]), int(line["round"]), str(line["control"]), int(line.get("sample", 0))


def unit_folder(output_dir: Path, unit: Unit) -> Path:
    """Where a unit's mask, weights and trainer_state.json lie."""
    replicate, round, control, sample = unit
    folder = output_dir / f"replicate-{replicate}" / f"round-{round:02d}"
    return folder if control == TICKET else folder / f"{control}-{sample}"


def unit_name(unit: Unit) -> str:
    """A unit in words, for lists of what is missing."""
    replicate, round, control, sample = unit
    which = "the ticket" if control == TICKET else f"{control} (sample {sample})"
    return f"{which} of round {round}, replicate {replicate}"


def missing_units(results: Results, recipe: Mapping[str, Any] | None = None) -> list[Unit]:
    """Units that should be there and have not finished.

    Every replicate must have each (round, control, sample) that any replicate has; and, when the resolved recipe is
    given, all that it plans.
    """
    finished = {unit_of(line) for line in results.lines}
    seen = {(replicate, *unit[1:]) for replicate in results.replicates() for unit in finished}
    return sorted((seen | planned_units(recipe or {})) - finished)


def planned_units(recipe: Mapping[str, Any]) -> set[Unit]:
    """The units of a resolved recipe: `experiment.replicates` × the ticket's rounds and those of its controls.

    Args:
        recipe: as recipe.yaml reads; controls as a list of names or as name -> {rounds, per_ticket}.
    """
    experiment, num_rounds = recipe.get("experiment") or {}, (recipe.get("lottery") or {}).get("num_rounds")
    if num_rounds is None:
        return set()
    units = {(round, TICKET, 0) for round in range(num_rounds + 1)}
    controls = experiment.get("controls") or {}
    for name in controls:
        options = (controls[name] if isinstance(controls, dict) else None) or {}
        if name in CONTROLS:
            rounds = options.get("rounds") or range(1, num_rounds + 1)
            units |= {(round, name, sample) for round in rounds for sample in range(options.get("per_ticket", 1))}
    return {(replicate, *unit) for replicate in range(experiment.get("replicates", 1)) for unit in units}
