"""Disks that fail and power that is cut, at every operation of a small run of the command line; then the run goes on.

A run whose disk fails ends with one sentence and an exit status that is not 0, or goes on and is right; the next start
recovers. After a power cut the next start recovers, and no finished network is lost.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tests.crash import processes
from tests.crash.compare import differences
from tests.crash.kills import Configuration, Reference, make_reference
from tests.crash.plans import FAULTS, Count, Fault
from tests.crash.power import LOSSES, PowerCut
from tests.crash.processes import HUNG, TRACEBACK, run
from tests.crash.recipe_runs import command_line, prepare

LONGEST_SENTENCE = 600


def run_by_command_line(folder: Path) -> None:
    """`hf-lottery run` of two rounds with a rewind step above 0 and one control."""
    sections = {
        "lottery": {"num_rounds": 1, "rewind_step": 1, "pruned_value": "init"},
        "experiment": {"controls": ["random_mask"]},
    }
    command_line("run", *prepare(folder, training={"max_steps": 4}, **sections))


@dataclass
class Trial:
    """What became of a run that was disturbed once.

    Args:
        name: `FAULT/N`, by which it can be repeated.
        reached: whether there was an N-th operation.
        operation: which.
        lost: files of finished networks that a power cut took.
        wrong: what is not as it should be.
    """

    name: str
    reached: bool = False
    operation: str = ""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def trial(kind: str, number: int, reference: Reference, place: Path, seed: int = 0) -> Trial:
    """Disturb the N-th operation of a run, run again, and compare.

    Args:
        kind: one of FAULTS, or `power-` and one of LOSSES.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    folder, log, found = place / "out", place / "operation", Trial(f"{kind}/{number}")
    if kind in FAULTS:
        first = run(run_by_command_line, folder, Fault(number, kind, log), place)
    else:
        plan = PowerCut(folder, number, kind.removeprefix("power-"), f"{seed}/{number}", log)
        first = run(run_by_command_line, folder, plan, place)
    if not log.exists():
        return found
    found.reached = True
    found.operation, *lost = log.read_text().splitlines()
    found.lost = [line.removeprefix("lost ") for line in lost]
    if kind in FAULTS:
        found.wrong += said_badly(first)
    again = run(run_by_command_line, folder, Count(), place)
    if again.status:
        found.wrong.append(f"the next start ends with {again.status}: {again.output[-1500:]}")
    else:
        if TRACEBACK in again.output:
            found.wrong.append(f"the next start prints a traceback: {again.output[-1500:]}")
        found.wrong += [f"after the next start: {line}" for line in differences(reference.folder, folder)]
    found.wrong += [f"lost: {path}" for path in found.lost]
    return found


def said_badly(ended: processes.Ended) -> list[str]:
    """What is wrong with how a run ended whose disk had failed."""
    if ended.status == HUNG:
        return ["it hangs"]
    if TRACEBACK in ended.output:
        return [f"a traceback, exit status {ended.status}: {ended.output[-1500:]}"]
    if ended.status == 0:
        return []
    last = ended.output.strip().rpartition("\n")[2]
    if not last or len(last) > LONGEST_SENTENCE:
        return [f"no sentence, exit status {ended.status}: {ended.output[-1500:]}"]
    return []


def main(asked: argparse.Namespace, place: Path) -> int:
    """All faults at every operation, and power cuts; prints counts and what was wrong."""
    began = time.monotonic()
    processes.adopt_orphans()
    processes.preload([run_by_command_line], place / "preload")
    configuration = Configuration(run_by_command_line)
    reference = make_reference(configuration, place / "reference")
    operations = sum(reference.operations.values())
    kinds = [*FAULTS, *(f"power-{losses}" for losses in LOSSES)]
    if asked.only:
        jobs = [(name.partition("/")[0], name.partition("/")[2]) for name in asked.only.split(",")]
        jobs = [(kind, int(n)) for kind, number in jobs for n in ([number] if number else range(1, operations + 1))]
    else:
        jobs = [(kind, number) for number in range(1, operations + 1) for kind in kinds]
    if asked.faults:
        jobs = jobs[:: max(1, len(jobs) // asked.faults)]
    print(f"{operations} file operations, {len(jobs)} disturbed runs", flush=True)
    trials, outcomes, wrong = Counter(), Counter(), Counter()
    with get_context("fork").Pool(asked.processes, processes.adopt_orphans) as pool:
        for found in pool.imap_unordered(_one, [(job, reference, place, asked.seed) for job in jobs]):
            kind = found.name.partition("/")[0]
            trials[kind] += found.reached
            outcomes[kind] += bool(found.lost)
            if found.wrong:
                wrong[kind] += 1
                print(f"WRONG: {found.name} at {found.operation} (python -m tests.crash faults --only {found.name})")
                for line in found.wrong[:8]:
                    print("  " + line.replace("\n", "\n    "))
                sys.stdout.flush()
    print(f"\n{'fault':14}{'disturbed runs':>16}{'lost networks':>16}{'wrong':>8}")
    for kind in kinds:
        print(f"{kind:14}{trials[kind]:16}{outcomes[kind]:16}{wrong[kind]:8}")
    print(f"\n{sum(trials.values())} disturbed runs, {time.monotonic() - began:.0f} s: {sum(wrong.values())} wrong")
    return 1 if sum(wrong.values()) else 0


def _one(job) -> Trial:
    (kind, number), reference, place, seed = job
    own = place / f"{kind}-{number}"
    try:
        return trial(kind, number, reference, own, seed)
    finally:
        shutil.rmtree(own, ignore_errors=True)
