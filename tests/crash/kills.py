"""Searches that are killed and started again until they are done, and compared with one that was never killed."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import recipe_runs, searches
from tests.crash.compare import differences
from tests.crash.plans import MOMENTS, Count, Kill
from tests.crash.processes import TRACEBACK, run, wait_for_orphans

MOST_KILLS = 5  # in one chain
GO_ON = 0.5  # the chance that a chain has one kill more


@dataclass(frozen=True)
class Configuration:
    """A search that is killed.

    Args:
        work: does all of it in the folder that it is given, or what is left of it.
        share: how many chains of kills it gets for one of the others; less if it is slow.
    """

    work: Callable[[Path], None]
    share: float = 1.0

    @property
    def name(self) -> str:
        return self.work.__name__


CONFIGURATIONS = {
    configuration.name: configuration
    for configuration in (
        Configuration(searches.from_initial),
        Configuration(searches.from_step_k),
        Configuration(searches.fresh_rounds),
        Configuration(searches.accumulating),
        Configuration(searches.best_at_end),
        Configuration(searches.every_epoch),
        Configuration(searches.learning_rate_rewinding),
        Configuration(searches.fine_tuning),
        Configuration(searches.pruned_to_init),
        Configuration(searches.criterion_with_data),
        Configuration(searches.lora),
        Configuration(searches.controls),
        Configuration(searches.learning_rates),
        Configuration(searches.replicates),
        Configuration(searches.two_workers, 0.5),
        Configuration(searches.two_processes, 0.3),
        Configuration(recipe_runs.to_report_and_ticket),
        Configuration(recipe_runs.measured_rewind_step, 0.3),
        Configuration(recipe_runs.two_replicates, 0.5),
        Configuration(recipe_runs.side_by_side, 0.2),
    )
}
QUICK = ("from_initial", "from_step_k", "best_at_end")


@dataclass
class Reference:
    """The undisturbed run.

    Args:
        folder: its output.
        operations: how many each of its processes did, by the process's name.
    """

    folder: Path
    operations: dict[str, int]


@dataclass
class Chain:
    """What became of a search that was killed.

    Args:
        name: `CONFIGURATION/INDEX`, by which it can be repeated.
        kills: what was killed when, one line each.
        different: what is not as in the undisturbed run.
    """

    name: str
    kills: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def make_reference(configuration: Configuration, place: Path) -> Reference:
    """Run it undisturbed.

    Raises:
        RuntimeError: it failed, or a file appeared that no operation had made, so that not everything is seen.
    """
    folder, log = place / "out", place / "operations"
    place.mkdir(parents=True)
    done = run(configuration.work, folder, Count(log), place)
    if done.status:
        raise RuntimeError(f"{configuration.name} failed undisturbed:\n{done.output}")
    seen = [json.loads(line) for line in log.read_text().splitlines()]
    known = {path for _, _, *paths in seen for path in paths}
    unseen = [str(path) for path in folder.rglob("*") if path.is_file() and str(path) not in known]
    if unseen:
        raise RuntimeError(f"{configuration.name}: files were made by operations that disk.py does not see: {unseen}")
    return Reference(folder, dict(Counter(process for process, *_ in seen)))


def kill_chain(configuration: Configuration, reference: Reference, seed: int, index: int, place: Path) -> Chain:
    """Kill a search one or more times, start it again until it is done, and compare.

    Args:
        seed, index: decide where it is killed. Over the indexes, first kills are spread evenly over all operations.
        place: a folder for it alone.
    """
    chain = Chain(f"{configuration.name}/{index}")
    draw = random.Random(f"{seed}/{chain.name}")
    shutil.rmtree(place, ignore_errors=True)
    folder = place / "out"
    share_done = 0.0
    while True:
        if chain.kills and (len(chain.kills) == MOST_KILLS or draw.random() > GO_ON):
            plan, log = Count(), None
        else:
            log = place / f"kill-{len(chain.kills)}"
            first = (index * 0.6180339887 + random.Random(f"{seed}/{configuration.name}").random()) % 1
            where = draw.random() * (1 - share_done) if chain.kills else first
            plan = _kill(draw, reference, where, log)
        alone = log is None or draw.random() < 0.5
        ended = run(configuration.work, folder, plan, place, wait_for_all=alone)
        if log is not None and log.exists():
            chain.kills.append(
                f"{plan.process} {plan.number} {plan.moment}{' all' * plan.everyone}: {log.read_text().strip()}"
            )
            share_done += where
            continue
        if ended.status:
            chain.different.append(f"exit status {ended.status}: {ended.output[-3000:]}")
        break
    wait_for_orphans()
    if not chain.different:
        chain.different = differences(reference.folder, folder)
        if TRACEBACK in ended.output:
            chain.different.append(f"a traceback: {ended.output[-3000:]}")
    return chain


def _kill(draw: random.Random, reference: Reference, where: float, log: Path) -> Kill:
    """A kill at a share `where` of the operations of a process."""
    processes = sorted(reference.operations)
    process = draw.choices(processes, [reference.operations[name] for name in processes])[0]
    number = 1 + math.floor(where * reference.operations[process])
    everyone = len(processes) > 1 and draw.random() < 0.5
    return Kill(number, draw.choice(MOMENTS), process, everyone, log)


def pattern(kill: str) -> str:
    """What a kill hit, without numbers and folders: `replace checkpoint-N/optimizer.pt`."""
    operation = kill.partition(": ")[2]
    kind, *paths = operation.split()
    name = re.sub(r"\.tmp\w+", ".tmp", re.sub(r"\d+", "N", "/".join(Path(paths[-1]).parts[-2:])))
    return f"{kind} {name}"
