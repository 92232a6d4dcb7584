"""Every file of a finished and of a half-finished run damaged, one at a time; then show, export, report and run.

Each command must do what it does without the damage, or name the file: no traceback, and no silent difference.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from hf_lottery.ticket.card_merge import BEGIN, END
from tests.crash import processes
from tests.crash.compare import LOCKS, differences
from tests.crash.faults import run_by_command_line
from tests.crash.kills import Configuration, make_reference
from tests.crash.plans import Count, Kill
from tests.crash.processes import TRACEBACK, outcome, run
from tests.crash.recipe_runs import command_line, prepare

CARD = "ticket/README.md"
MARK = "=== {} ends with {}"
STATUSES = (0, 1, 2)
NAMES = ("show", "export", "report", "run")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flipped(where: float) -> Callable[[Path], None]:
    """One byte, at a share of the file's length, becomes another."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[min(int(where * len(data)), len(data) - 1)] ^= 0x11
        path.write_bytes(data)

    return flip


WAYS: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "emptied": emptied,
    "removed": removed,
    "made a folder": made_a_folder,
    "first byte flipped": flipped(0),
    "byte flipped early": flipped(0.2),
    "byte flipped in the middle": flipped(0.5),
    "byte flipped late": flipped(0.85),
    "last byte flipped": flipped(1),
}


def commands(folder: Path, go_on: Callable[[Path], None]) -> None:
    """What is done with a damaged run, each in turn; after each a line with its exit status."""
    words = {
        "show": ["show", str(folder)],
        "export": ["export", str(folder / "replicate-0" / "round-00"), "--to", "delta"],
        "report": ["report", str(folder)],
    }
    for name, command in words.items():
        status = outcome(lambda command=command: command_line(*command))
        print(MARK.format(name, status), flush=True)
    print(MARK.format("run", outcome(lambda: go_on(folder))), flush=True)


@dataclass
class Said:
    """What a command did. Args: status: its exit status; text: what it printed, without the folder's own path."""

    status: int
    text: str


def say_all(
    tree: Path, go_on: Callable[[Path], None], place: Path, damage: Callable[[Path], None] | None = None
) -> dict[str, Said]:
    """Copy a run into `place`, damage it, and do all commands."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    folder = place / "out"
    shutil.copytree(tree, folder)
    if damage is not None:
        damage(folder)
    ended = run(lambda folder: commands(folder, go_on), folder, Count(), place)
    said, text = {}, ended.output.replace(str(place), "PLACE")
    for name in NAMES:
        before, mark, rest = text.partition(f"=== {name} ends with ")
        if not mark:
            said[name] = Said(ended.status, text)
            break
        status, _, text = rest.partition("\n")
        said[name] = Said(int(status), before)
    return said


@dataclass
class Tear:
    """What became of a damaged run. Args: name: `TREE/WAY/FILE`, by which it can be repeated; wrong: what is wrong."""

    name: str
    wrong: list[str] = field(default_factory=list)


@dataclass
class Whole:
    """An undamaged run.

    Args:
        tree: its folder.
        work: what runs it again.
        said: what the commands say of it.
        after: its folder afterwards.
    """

    tree: Path
    work: Callable[[Path], None]
    said: dict[str, Said]
    after: Path


def tear(kind: str, whole: Whole, way: str, name: str, place: Path) -> Tear:
    """Damage one file and judge every command.

    Args:
        kind: `finished` or `half`.
        way: one of WAYS.
        name: the file, relative to the output folder.
    """
    found = Tear(f"{kind}/{way}/{name}")
    said = say_all(whole.tree, whole.work, place, lambda folder: WAYS[way](folder / name))
    short = Path(name).name
    for command, expected in whole.said.items():
        if command not in said:
            found.wrong.append(f"{command}: did not come to its end")
            continue
        now = said[command]
        if TRACEBACK in now.text:
            found.wrong.append(f"{command}: a traceback: {now.text[-1200:]}")
        elif now.status not in STATUSES:
            found.wrong.append(f"{command}: exit status {now.status}: {now.text[-600:]}")
        elif short not in now.text and (now.status, now.text) != (expected.status, expected.text) and command != "run":
            found.wrong.append(f"{command}: says something else, and {short} is not in it: {now.text[-600:]}")
    named = any(short in now.text for now in said.values())
    if not named:
        lines = [line for line in differences(whole.after, place / "out") if not harmless(line, name)]
        if name == CARD and our_part(whole.after / name) == our_part(place / "out" / name):
            lines = [line for line in lines if not line.startswith(CARD)]  # what is around it is the user's to change
        found.wrong += [f"silently different: {line}" for line in lines[:6]]
    return found


def harmless(line: str, name: str) -> bool:
    """Whether a difference is in the damaged file alone, and that is a checkpoint's, which is no result."""
    folder = name.rpartition("/")[0]
    return "/checkpoint-" in name and line.startswith((name, f"{folder}/manifest.json"))


def our_part(card: Path) -> str:
    """The part of a ticket's card that is not the user's."""
    return card.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def from_initial_values(folder: Path) -> None:
    """A run whose networks can be exported as a sparse delta, which needs θ_0."""
    sections = {"lottery": {"num_rounds": 1, "pruned_value": "init"}, "experiment": {"controls": ["random_mask"]}}
    command_line("run", *prepare(folder, training={"max_steps": 4}, **sections))


def whole_runs(place: Path) -> dict[str, Whole]:
    """A finished run, and one with a rewind step above 0 that was killed in its second round, at its last file."""
    finished = make_reference(Configuration(from_initial_values), place / "finished")
    make_reference(Configuration(run_by_command_line), place / "late")
    lines = [json.loads(line) for line in (place / "late" / "operations").read_text().splitlines()]
    number = next(n for n, (_, _, path, _) in enumerate(lines, 1) if "/round-01/" in path and "trained" in path)
    half = place / "half" / "out"
    half.parent.mkdir()
    run(run_by_command_line, half, Kill(number, "before", "main", False, place / "half" / "log"), place)
    found, trees = {}, {"finished": (finished.folder, from_initial_values), "half": (half, run_by_command_line)}
    for digit, (kind, (tree, work)) in enumerate(trees.items()):
        own = place / f"tear-{digit:05}"
        found[kind] = Whole(tree, work, say_all(tree, work, own), own / "out")
    return found


def main(asked: argparse.Namespace, place: Path) -> int:
    """All files in all ways; prints counts and what was wrong."""
    began = time.monotonic()
    processes.adopt_orphans()
    processes.preload([run_by_command_line], place / "preload")
    wholes = whole_runs(place)
    for kind, whole in wholes.items():
        for name, said in whole.said.items():
            print(f"{kind}, undamaged: {name} ends with {said.status} {said.text.strip() if said.status else ''}")
    jobs = [(kind, way, name) for kind, whole in wholes.items() for name in files(whole.tree) for way in WAYS]
    if asked.only:
        jobs = [job for job in jobs if "/".join(job).startswith(asked.only)]
    if asked.tears:
        random.Random(asked.seed).shuffle(jobs)
        jobs = jobs[: asked.tears]
    print(f"{len(jobs)} damaged runs", flush=True)
    done, wrong = Counter(), Counter()
    numbered = [(number, job, wholes[job[0]], place) for number, job in enumerate(jobs, len(wholes))]
    with get_context("fork").Pool(asked.processes, processes.adopt_orphans) as pool:
        for found in pool.imap_unordered(_one, numbered):
            key = "/".join(found.name.split("/")[:2])
            done[key] += 1
            if found.wrong:
                wrong[key] += 1
                print(f"WRONG: {found.name} (python -m tests.crash tears --only '{found.name}')")
                for line in found.wrong[:8]:
                    print("  " + line.strip().replace("\n", "\n    "))
                sys.stdout.flush()
    print(f"\n{'run and damage':40}{'runs':>8}{'wrong':>8}")
    for key in sorted(done):
        print(f"{key:40}{done[key]:8}{wrong[key]:8}")
    total = sum(wrong.values())
    print(
        f"\n{sum(done.values())} damaged runs x {len(NAMES)} commands, {time.monotonic() - began:.0f} s: {total} wrong"
    )
    return 1 if total else 0


def files(tree: Path) -> list[str]:
    """The files of a run that are torn: all but empty lock files."""
    found = (path for path in tree.rglob("*") if path.is_file() and not LOCKS.fullmatch(path.name))
    return sorted(path.relative_to(tree).as_posix() for path in found)


def _one(job) -> Tear:
    number, (kind, way, name), whole, place = job
    own = place / f"tear-{number:05}"
    try:
        return tear(kind, whole, way, name, own)
    finally:
        shutil.rmtree(own, ignore_errors=True)
