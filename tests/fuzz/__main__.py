"""`make fuzz`: python -m tests.fuzz [recipes | tickets] [--count N] [--seed S]. Exit status 1 if anything failed."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from importlib import import_module
from importlib.util import find_spec

from tests.fuzz.counts import Counts

WHAT = ("recipes", "tickets")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"any of {', '.join(WHAT)}; all if left out")
    parser.add_argument("--count", type=int, default=100_000, help="how many of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="recipes by coverage, with atheris (Linux and macOS)")
    arguments = parser.parse_args()
    if arguments.guided:
        from tests.fuzz.guided import fuzz_by_coverage

        return fuzz_by_coverage(arguments.count, arguments.seed)
    failed = 0
    for what in arguments.what or WHAT:
        if find_spec(f"tests.fuzz.{what}") is None:
            print(f"{what}: there is no tests/fuzz/{what}.py")
            continue
        started = time.perf_counter()
        counts = import_module(f"tests.fuzz.{what}").fuzz(arguments.count, arguments.seed)
        print(summary(what, counts, time.perf_counter() - started), flush=True)
        failed += len(counts.failures)
    return 1 if failed else 0


def summary(what: str, counts: Counts, seconds: float) -> str:
    """What was counted, and the first failures of each kind in full."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    kinds: dict[str, str] = {}
    for failure in counts.failures:
        lines = [line for line in failure.splitlines() if line and not line.startswith(" ")]
        kinds.setdefault((lines[1] if lines[1:] else lines[0])[:60], failure)
    return "\n\n".join(
        [
            f"{what}: {counts.tried:,} tried in {seconds:,.0f} s: {counts.ok:,} accepted, {counts.refused:,} refused, "
            f"{len(counts.failures):,} failures; slowest {counts.slowest:.2f} s, memory at most {peak:.2f} GiB",
            *list(kinds.values())[:20],
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
