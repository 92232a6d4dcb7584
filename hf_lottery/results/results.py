"""Results: the finished networks of an output folder, read from its results.jsonl, and which are missing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from hf_lottery.finished import odd_value, read_line
from hf_lottery.layout import CONTROLS, RESULT_FILE, RESULTS_FILE, TICKET, Network
from hf_lottery.learning_rates import OF_RECIPE
from hf_lottery.results.chains import before_older, older_notes
from hf_lottery.results.diverged import Diverged, left_out
from hf_lottery.results.metric import Metric, metric_of
from hf_lottery.results.resolution import resolution
from hf_lottery.results.tuned import Choice, Group, choices, unfinished_notes
from hf_lottery.results.values import Line, count_of, value_of
from hf_lottery.sealed import DamagedFile


@dataclass(frozen=True)
class Results:
    """The finished networks of one experiment.

    Args:
        trained: a line of results.jsonl for each network.
        notes: what was skipped in reading, a sentence each.
    """

    trained: list[Line]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def lines(self) -> list[Line]:
        """The lines that are shown and judged: of networks at several learning rates those at the one chosen."""
        if not self.choices:
            return self.trained
        taken = {id(line) for choice in self.choices.values() for line in choice.taken}
        return [line for line in self.trained if OF_RECIPE not in line or id(line) in taken]

    @cached_property
    def choices(self) -> dict[Group, Choice]:
        """(control, round) -> the learning rate chosen; empty where every network has the recipe's own."""
        return choices(self.trained, self.metric)

    def learning_rate(self, control: str, round: int) -> float | None:
        """The rate that a control is taken at, where the control has others than the recipe's own; otherwise None."""
        choice = self.choices.get((control, round))
        return None if choice is None or [one.rate for one in choice.tried] == [choice.own] else choice.rate

    @cached_property
    def metric(self) -> Metric:
        """The metric that the experiment is judged by."""
        return metric_of(self.trained)

    @property
    def looks(self) -> int:
        """How often the results are judged with the aim to stop; 1 where the number of replicates was fixed before."""
        return max((looks for line in self.lines if (looks := count_of(line, "looks")) is not None), default=1)

    def of_first(self, replicates: int) -> Results:
        """The results of the first so many replicates."""
        return Results([line for line in self.trained if line["replicate"] < replicates], self.notes)

    def replicates(self) -> list[int]:
        return sorted({line["replicate"] for line in self.trained})

    def controls(self) -> list[str]:
        """The controls that have a finished network, in the order of CONTROLS, others after them by name."""
        found = {line["control"] for line in self.lines} - {TICKET}
        return [name for name in CONTROLS if name in found] + sorted(found - set(CONTROLS))

    def rounds(self, control: str = TICKET) -> list[int]:
        return sorted({line["round"] for line in self.lines if line["control"] == control})

    def select(self, control: str, round: int) -> list[Line]:
        return self._groups.get((control, round), [])

    @cached_property
    def _groups(self) -> dict[tuple[str, int], list[Line]]:
        found: dict[tuple[str, int], list[Line]] = {}
        for line in self.lines:
            found.setdefault((line["control"], line["round"]), []).append(line)
        return found

    def values(self, key: str, control: str = TICKET, round: int = 0) -> dict[int, float]:
        """Replicate -> the value of `key`, averaged over the replicate's samples.

        A replicate's samples share its initialisation and data order, so they are one observation, not several.
        Lines without a finite value are left out, and networks that diverged are; see `without_value`.
        """
        if (key, control, round) not in self._values:
            samples: dict[int, list[float]] = {}
            for line in self.select(control, round):
                value = value_of(line, key)
                if value is not None:
                    samples.setdefault(line["replicate"], []).append(value)
            means = {replicate: sum(found) / len(found) for replicate, found in sorted(samples.items())}
            self._values[key, control, round] = means
        return self._values[key, control, round]

    @cached_property
    def _values(self) -> dict[tuple[str, str, int], dict[int, float]]:
        return {}

    def without_value(self, key: str, control: str, round: int) -> set[int]:
        """The replicates of which a finished network of this control and round has no finite value of `key`.

        It diverged, or its loss or metric is NaN or infinite. Empty if no network of the experiment has a value.
        """
        if not self.has(key):
            return set()
        return {line["replicate"] for line in self.select(control, round) if value_of(line, key) is None}

    def has(self, key: str) -> bool:
        """Whether any network has a finite value of `key`."""
        return any(value_of(line, key) is not None for line in self.lines)

    def resolution(self, key: str) -> float:
        """The step of the grid that the values of `key` lie on; 0 if there is none, or no value."""
        values = [value for line in self.lines if (value := value_of(line, key)) is not None]
        counts = {count_of(line, "test_examples") for line in self.lines}
        of_examples = len(counts) == 1 and key != "early_stop_step"  # whole numbers lie on every grid of 1/count
        return resolution(values, counts.pop() if of_examples else None)

    def density(self, control: str = TICKET, round: int = 0) -> float:
        """Mean over the networks of kept / all weights, as counted from their masks; NaN without a network.

        Networks of one round are taken together, not those of one density: under a global scope two replicates may
        differ by a weight.
        """
        densities = [line["density"] for line in self.select(control, round)]
        return sum(densities) / len(densities) if densities else math.nan

    def missing(self, planned: Iterable[Network] = ()) -> list[Network]:
        """The networks that should be there and have not finished.

        Every replicate must have each round, control and sample that any replicate has, and all that is planned,
        but for what stands on a network that diverged, and for what only a chain of this version needs.

        Args:
            planned: the networks of the recipe, where it is known.
        """
        finished = {Network.of_line(line) for line in self.trained}
        expected = self._expected(planned)
        return sorted(expected - finished - self.left_out(planned).keys() - before_older(self.trained, expected))

    def _expected(self, planned: Iterable[Network]) -> set[Network]:
        finished = [Network.of_line(line) for line in self.trained]
        return {replace(n, replicate=r) for r in self.replicates() for n in finished} | set(planned)

    def diverged(self) -> list[Line]:
        """The lines of the networks that became nan or infinite, at any learning rate."""
        return list(self._diverged)

    @cached_property
    def _diverged(self) -> list[Line]:
        return [line for line in self.trained if Diverged.of_line(line) is not None]

    def left_out(self, planned: Iterable[Network] = ()) -> dict[Network, Network]:
        """A network that is never trained -> the diverged one that it stands on; `planned` as for `missing`."""
        return left_out(self._expected(planned), [Network.of_line(line) for line in self.diverged()])

    def diverged_replicates(self, control: str, rounds: Container[int]) -> set[int]:
        """The replicates of which a network of this control, at the recipe's own learning rate, diverged at a round.

        Those at other rates end nothing but themselves, or their own chain.
        """
        own = [n for n in map(Network.of_line, self._diverged) if n.control == control and n.learning_rate is None]
        return {network.replicate for network in own if network.round in rounds}

    def first_whole(self) -> int:
        """The first replicate whose ticket diverged at no round; the first of all if there is none."""
        gone = self.diverged_replicates(TICKET, self.rounds())
        return min(self.replicates(), key=lambda replicate: (replicate in gone, replicate))


def read_results(output_dir: str | os.PathLike) -> Results:
    """Read `results.jsonl` of an output folder. A damaged line is skipped, with a note; of two lines for one network
    the last one counts. Where the networks' own folders are there, what their result.json says counts.

    Raises:
        FileNotFoundError: the folder, or its results.jsonl, is not there.
        ValueError: nothing in it has finished, or its lines are of two recipes.
    """
    path = Path(output_dir) / RESULTS_FILE
    listed, notes = _listed(path) if path.is_file() else ({}, [])
    found, more = _from_folders(Path(output_dir), listed)
    notes += more
    if not found and not path.is_file():
        raise FileNotFoundError(
            f"'{output_dir}' has no {RESULTS_FILE}, so nothing has finished there; "
            "give the output folder of a run (training.output_dir), or run the recipe first"
        )
    if not found:
        raise ValueError(
            f"nothing has finished in '{output_dir}' yet: {RESULTS_FILE} has no complete line; run it again"
        )
    lines = [found[network] for network in sorted(found)]
    _require_one_recipe(lines, output_dir)
    found_notes = notes + _shared_seeds(lines) + older_notes(lines)
    return Results(lines, found_notes + unfinished_notes(choices(lines, metric_of(lines))))


def _listed(path: Path) -> tuple[dict[Network, Line], list[str]]:
    """The lines of results.jsonl, and a sentence for each that was skipped."""
    raw = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    found: dict[Network, Line] = {}
    notes = []
    for number, text in enumerate(raw, start=1):
        if not text.strip():
            continue
        line = _parse(text)
        if line is None:
            last = number == len(raw)
            why = "is incomplete (the run was stopped while writing it)" if last else "is not the result of a network"
            notes.append(f"Line {number} of {RESULTS_FILE} {why} and was skipped.")
            continue
        found[Network.of_line(line)] = line
    return found, notes


def _from_folders(root: Path, listed: Mapping[Network, Line]) -> tuple[dict[Network, Line], list[str]]:
    """The lines of results.jsonl, put right by the networks' own folders, and a sentence for each difference."""
    found, notes = dict(listed), []
    for folder in _network_folders(root):
        name = f"{folder.relative_to(root).as_posix()}/{RESULT_FILE}"
        try:
            line = read_line(folder)
        except DamagedFile as damage:
            notes.append(f"{name} is damaged: {damage.why}. Run the recipe again: this network is trained again.")
            continue
        network = Network.of_line(line)
        if network.folder(root) != folder:
            notes.append(f"{name} is the result of {network}, and was skipped.")
            continue
        if listed.get(network) != line:
            what = "lists another result of" if network in listed else "does not list"
            notes.append(f"{RESULTS_FILE} {what} {network}; what {name} says was taken.")
        found[network] = line
    return found, notes


def _network_folders(root: Path) -> list[Path]:
    """The folders of finished networks in an output folder."""
    rounds = "replicate-*/round-*"
    return sorted(path.parent for pattern in (rounds, f"{rounds}/*") for path in root.glob(f"{pattern}/{RESULT_FILE}"))


def _parse(text: str) -> Line | None:
    try:
        line = json.loads(text)
        whole = isinstance(line, dict) and Network.of_line(line) and math.isfinite(line["density"])
        whole = whole and odd_value(line) is None and isinstance(line["control"], str)
        whole = whole and all(isinstance(line.get(key, 0), int) for key in ("replicate", "round", "sample"))
        Diverged.of_line(line)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return line if whole else None


def _require_one_recipe(lines: list[Line], output_dir: str | os.PathLike) -> None:
    """Refuse lines of different recipes: a mean over them would have no meaning."""
    first: dict[tuple, Line] = {}
    for line in lines:
        for key, group in (("prunable", ()), ("steps", (line["control"], line["round"]))):
            if key == "steps" and Diverged.of_line(line) is not None:
                continue  # it stopped where it diverged
            other = first.setdefault((key, *group), line)
            if line.get(key) != other.get(key):
                raise ValueError(
                    f"the networks of '{output_dir}' are not of one recipe: {key} is {other.get(key)} in "
                    f"{Network.of_line(other)}, and {line.get(key)} in {Network.of_line(line)}; "
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
