"""Experiment: replicates x rounds x controls on disk; what is done, what is left, and doing it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from hf_lottery.distributed.processes import barrier, from_main, is_main
from hf_lottery.experiment.controls import CONTROLS, control_seed
from hf_lottery.files import write_text
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.search import Search
from hf_lottery.training.trainer import LotteryMixin

if TYPE_CHECKING:
    from hf_lottery.recipe.sections import Control

RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True, order=True)
class Unit:
    """One network to train: the ticket (its round 0 is the dense network) or a control of a round."""

    replicate: int
    round: int
    control: str = "ticket"
    sample: int = 0

    def path(self, root: Path) -> Path:
        """`replicate-R/round-NN`, and within it `CONTROL-SAMPLE` for a control."""
        folder = root / f"replicate-{self.replicate}" / f"round-{self.round:02d}"
        return folder if self.control == "ticket" else folder / f"{self.control}-{self.sample}"

    def needs(self) -> Unit | None:
        """The unit that must be finished first: the round before, or for a control the ticket of its round."""
        if self.control != "ticket":
            return Unit(self.replicate, self.round)
        return Unit(self.replicate, self.round - 1) if self.round > 0 else None

    def __str__(self) -> str:
        what = "dense" if self == Unit(self.replicate, 0) else self.control.replace("_", " ")
        sample = f" {self.sample + 1}" if self.sample else ""
        return f"replicate {self.replicate} · round {self.round} · {what}{sample}"


class Experiment:
    """All the networks of a recipe, each trained once, in any order that their needs allow, by any number of workers.

    Args:
        root: the output folder, which workers may share.
        num_rounds: prunings.
        replicates: how many seeds; replicate r runs under `seed` + r.
        controls: what every ticket is compared with: each has a `name` out of controls.CONTROLS, the `rounds`
            it is run at (None: every round but 0) and `per_ticket`, how many samples of it.
        seed: the first seed.
        make_trainer: (seed, output folder of the replicate) -> a fresh trainer with a freshly initialised model.
    """

    def __init__(
        self,
        root: str | Path,
        num_rounds: int,
        replicates: int,
        controls: Sequence[Control],
        seed: int,
        make_trainer: Callable[[int, Path], LotteryMixin],
    ):
        self.root, self.num_rounds, self.replicates = Path(root), num_rounds, replicates
        self.controls, self.seed, self.make_trainer = controls, seed, make_trainer
        self._lock: FileLock | None = None  # of the unit that rank 0 has claimed
        for control in controls:
            for number in control.rounds or []:
                if not 1 <= number <= num_rounds:
                    raise ValueError(
                        f"control {control.name} is asked for at round {number}; rounds are 1 to {num_rounds}"
                    )

    def units(self) -> list[Unit]:
        """Every network, those of early rounds first."""
        units = []
        for replicate in range(self.replicates):
            for number in range(self.num_rounds + 1):
                units.append(Unit(replicate, number))
                for control in self.controls:
                    if control.name in CONTROLS and number in (control.rounds or range(1, self.num_rounds + 1)):
                        units += [Unit(replicate, number, control.name, s) for s in range(control.per_ticket)]
        return sorted(units, key=lambda unit: (unit.round, unit.control != "ticket", unit))

    def folder(self, unit: Unit) -> NetworkFolder:
        """Where a unit's files lie."""
        return NetworkFolder(unit.path(self.root))

    def pending(self) -> list[Unit]:
        """What is not finished."""
        return [unit for unit in self.units() if not self.folder(unit).finished]

    def run(self, on_start: Callable[[Unit], None] = lambda unit: None, poll_seconds: float = 0.5) -> None:
        """Train until nothing is left, beside other workers on the same folder.

        A unit is claimed by a file lock, which the operating system releases if its worker dies; whatever a dead
        worker left half-done is then continued. A worker may be several processes: rank 0 claims for them all.

        Args:
            on_start: called with each unit that this worker trains.
            poll_seconds: how long to wait when everything that could be trained is being trained by others.
        """
        while from_main(self.pending):  # decided anew each time: no rank waits for longer than poll_seconds
            unit = from_main(self._claim)
            if unit is None:
                time.sleep(poll_seconds)
                continue
            try:
                if is_main():
                    on_start(unit)
                self._train(unit)
                if from_main(lambda unit=unit: not self.folder(unit).finished):
                    raise FileNotFoundError(f"{unit} was trained, and {self.folder(unit).path} does not hold it")
            finally:
                self._release()
            self.write_results()
        self.write_results()

    def write_results(self) -> Path:
        """Gather the finished units' lines into results.jsonl."""
        path = self.root / RESULTS_FILE
        if is_main():
            self._write_results(path)
        barrier()
        return path

    def _write_results(self, path: Path) -> None:
        with FileLock(self.root / ".results.lock"):
            lines = [self.folder(unit).result() for unit in sorted(self.units()) if self.folder(unit).finished]
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def _claim(self) -> Unit | None:
        """Lock the first unit that can be trained now; None where others are training all of those."""
        for unit in self.pending():
            folder, first = self.folder(unit), unit.needs()
            if first is not None and not self.folder(first).finished:
                continue
            folder.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            if not folder.finished:  # by another worker, since we looked
                self._lock = lock
                return unit
            lock.release()
        return None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _train(self, unit: Unit) -> None:
        seed = self.seed + unit.replicate
        trainer = self.make_trainer(seed, self.root / f"replicate-{unit.replicate}")
        search = Search(trainer)
        if unit.control == "ticket":
            search.run_round(unit.round, replicate=unit.replicate)
            return
        search.enter_round(unit.round)
        own_seed = control_seed(seed, unit.control, unit.round, unit.sample)
        CONTROLS[unit.control](trainer, unit.round, own_seed)
        search.train_network(self.folder(unit), **unit.__dict__)
