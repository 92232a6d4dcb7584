"""`python -m tests.crash kills [--kills 1000] [--seed 0] [--only NAME[/INDEX]]`, and `faults`, `tears`.

Exit status 1 if anything was lost, different, or said by a traceback. What is printed of a difference is enough to
repeat it: `python -m tests.crash kills --seed 0 --only from_step_k/17`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.crash import processes
from tests.crash.kills import CONFIGURATIONS, Chain, Reference, kill_chain, make_reference, pattern
from tests.crash.recipe_runs import write_inputs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("what", choices=("kills", "faults", "tears"))
    parser.add_argument("--kills", type=int, default=1000, help="at least so many")
    parser.add_argument("--faults", type=int, help="about so many disturbed runs, instead of one at every operation")
    parser.add_argument("--tears", type=int, help="so many damaged runs, instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="configurations, separated by commas; NAME/INDEX: one chain of kills")
    parser.add_argument("--processes", type=int, default=2, help="so many at a time")
    parser.add_argument("--keep", action="store_true", help="leave the folders there, and say where they are")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    place = Path(tempfile.mkdtemp(prefix="hf-lottery-crash-"))
    write_inputs(place / "inputs")
    try:
        if asked.what == "kills":
            return kills(asked, place)
        from tests.crash import faults, tears

        return {"faults": faults.main, "tears": tears.main}[asked.what](asked, place)
    finally:
        if asked.keep:
            print(f"the folders are in {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)


def kills(asked: argparse.Namespace, place: Path) -> int:
    """Kill until there are enough kills; print how many, where, and what differed."""
    began = time.monotonic()
    names = [name.partition("/")[0] for name in asked.only.split(",")] if asked.only else list(CONFIGURATIONS)
    chosen = [CONFIGURATIONS[name] for name in names]
    indexes = [int(name.partition("/")[2]) for name in asked.only.split(",") if "/" in name] if asked.only else []
    processes.adopt_orphans()
    processes.preload([chosen[-1].work], place / "preload")
    references = {
        configuration.name: make_reference(configuration, place / configuration.name) for configuration in chosen
    }
    total = sum(sum(reference.operations.values()) for reference in references.values())
    print(f"{len(chosen)} configurations, {total} file operations in all", flush=True)
    if indexes:
        jobs = iter([(name, index) for name, index in zip(names, indexes, strict=True)])
    else:
        jobs = schedule(names)
    chains: list[Chain] = []
    killed = Counter()
    with get_context("fork").Pool(asked.processes, processes.adopt_orphans) as pool:
        waiting = []
        while True:
            while len(waiting) < asked.processes and sum(killed.values()) < asked.kills:
                job = next(jobs, None)
                if job is None:
                    break
                name, index = job
                waiting.append(pool.apply_async(one, (name, references[name], asked.seed, index, place, asked.keep)))
            if not waiting:
                break
            for result in [result for result in waiting if result.ready()]:
                waiting.remove(result)
                chain = result.get()
                chains.append(chain)
                killed[chain.name.partition("/")[0]] += len(chain.kills)
                if chain.different:
                    show(chain, asked.seed)
            time.sleep(0.01)
    return summary(chains, killed, references, time.monotonic() - began)


def schedule(names: list[str]) -> Iterator[tuple[str, int]]:
    """Configurations and indexes of their chains, without end."""
    step = 0
    while True:
        for name in names:
            before, now = (int(n * CONFIGURATIONS[name].share) for n in (step, step + 1))
            if now > before:
                yield name, before
        step += 1


def one(name: str, reference: Reference, seed: int, index: int, place: Path, keep: bool) -> Chain:
    own = place / name / f"chain-{index}"
    chain = kill_chain(CONFIGURATIONS[name], reference, seed, index, own)
    if not (keep and chain.different):
        shutil.rmtree(own, ignore_errors=True)
    return chain


def show(chain: Chain, seed: int) -> None:
    print(f"DIFFERENT: {chain.name} (python -m tests.crash kills --seed {seed} --only {chain.name})")
    for kill in chain.kills:
        print(f"  killed: {kill}")
    for line in chain.different[:12]:
        print(f"  {line}")
    if len(chain.different) > 12:
        print(f"  and {len(chain.different) - 12} more")
    sys.stdout.flush()


def summary(chains: list[Chain], killed: Counter, references: dict[str, Reference], seconds: float) -> int:
    differing = Counter(chain.name.partition("/")[0] for chain in chains if chain.different)
    print(f"\n{'configuration':28}{'operations':>12}{'chains':>8}{'kills':>8}{'different':>11}")
    for name, reference in references.items():
        count = sum(chain.name.startswith(name + "/") for chain in chains)
        operations = sum(reference.operations.values())
        print(f"{name:28}{operations:12}{count:8}{killed[name]:8}{differing[name]:11}")
    where = Counter(pattern(kill) for chain in chains for kill in chain.kills)
    print(f"\nkilled at {len(where)} kinds of operations; most often:")
    for what, count in where.most_common(15):
        print(f"{count:6}  {what}")
    bad = sum(differing.values())
    print(
        f"\n{sum(killed.values())} kills in {len(chains)} searches of {len(references)} configurations, "
        f"{seconds:.0f} s: {bad} differences"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
