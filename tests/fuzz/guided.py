"""Recipes by coverage: atheris changes bytes so that they reach new lines of the code that reads recipes.

pip install atheris; it has wheels for Linux, and for some versions of Python only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hf_lottery.recipe", "hf_lottery.config", "hf_lottery.printable", "yaml"]):
    from tests.fuzz import recipes

from hf_lottery.bundled import bundled_recipes
from tests.fuzz.counts import Counts


def fuzz_by_coverage(count: int, seed: int) -> int:
    """Run `count` inputs: a recipe's text, and after a line `===` an override on each line. Exits at a failure."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as corpus, recipes.prepared() as folder:
        for name, path in bundled_recipes().items():
            lines = [line for line in path.read_text(encoding="utf-8").split("\n") if not line.startswith("#")]
            text = "\n".join(lines) + "\n===\ntraining.seed=1\nlottery.pruning_rates={a: 1e-1}\n"
            Path(corpus, name.replace("/", "-")).write_text(text, encoding="utf-8")

        def one_input(data: bytes) -> None:
            text, _, overrides = data.decode("utf-8", "replace").partition("\n===\n")
            recipes.attempt(counts, folder, f"input {counts.tried}", text, overrides.split("\n")[:8])
            if counts.failures:
                raise AssertionError(counts.failures[0])
            if counts.tried % 1000 == 0:
                print(f"{counts.tried:,} tried: {counts.ok:,} accepted, {counts.refused:,} refused, "
                      f"slowest {counts.slowest:.2f} s", flush=True)  # fmt: skip

        # atheris ends the process when it is done
        atheris.Setup([sys.argv[0], corpus, f"-runs={count}", f"-seed={seed + 1}", "-max_len=4096"], one_input)
        atheris.Fuzz()
    return 0
