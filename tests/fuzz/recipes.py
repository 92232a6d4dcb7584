"""A mutator and hypothesis over the bundled recipes and overrides: read, and where that is accepted check and write.

Every recipe must be accepted, or refused with a sentence of ours, in at most MOST_SECONDS and MOST_BYTES; what is
accepted can be written and read again, and means the same. No module that a recipe names is ever imported.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase
from transformers.utils import logging

import hf_lottery
from hf_lottery.bundled import bundled_recipes
from hf_lottery.cli.main import _message
from hf_lottery.printable import LONGEST_LINE
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.redaction import without_secrets
from hf_lottery.runner.check import check
from tests.fuzz.counts import Counts
from tests.fuzz.recipe_texts import CANARY, cases, mutated

MOST_SECONDS, MOST_BYTES = 10, 1 << 30
BY_HYPOTHESIS = 10  # one case in so many
PACKAGE = str(Path(hf_lottery.__file__).parent)


class Wrong(Exception):
    """An answer that breaks a promise although nothing was raised."""


def fuzz(count: int, seed: int) -> Counts:
    """Try `count` recipes with overrides; the same seed tries the same ones."""
    counts = Counts()
    sources = [path.read_text(encoding="utf-8") for path in bundled_recipes().values()]
    with prepared() as folder:
        answer(folder, sources[0], [])  # imports what is needed, so that it is not counted as growth
        before = _peak()
        for number in range(count - count // BY_HYPOTHESIS):
            rng = random.Random(f"{seed}:{number}")
            text, overrides = mutated(sources, rng)
            attempt(counts, folder, f"recipe {seed}:{number}", text, overrides)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count // BY_HYPOTHESIS,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(cases(sources))
        def generated(case):
            attempt(counts, folder, f"hypothesis {seed}:{counts.tried}", *case)

        if count >= BY_HYPOTHESIS:
            generated()
        if (grown := _peak() - before) > MOST_BYTES:
            counts.failures.append(f"memory has grown by {grown / 2**20:,.0f} MiB")
    return counts


@contextlib.contextmanager
def prepared():
    """A folder of its own as working directory, with a module that must not be imported; nothing is logged."""
    here, level, path = os.getcwd(), logging.get_verbosity(), list(sys.path)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        module = Path(folder) / CANARY / f"{CANARY}.py"
        module.parent.mkdir()
        module.write_text("")
        os.chdir(folder)
        sys.path.insert(0, "")  # as in `python -m hf_lottery`
        try:
            yield Path(folder)
        finally:
            os.chdir(here)
            sys.path[:] = path
            logging.set_verbosity(level)


def attempt(counts: Counts, folder: Path, name: str, text: str, overrides: list[str]) -> None:
    """Try one recipe, and count how it ended."""
    started, environment = time.perf_counter(), dict(os.environ)
    counts.tried += 1
    try:
        accepted = answer(folder, text, overrides)
        counts.ok += accepted
        counts.refused += not accepted
    except Exception:  # whatever is not ours is what is looked for
        counts.failures.append(f"{name}: {overrides!r:.500} {traceback.format_exc(limit=-4)}\n{text[:3000]}")
    seconds = time.perf_counter() - started
    counts.slowest = max(counts.slowest, seconds)
    if seconds > MOST_SECONDS:
        counts.failures.append(f"{name}: {seconds:.1f} s, {overrides!r:.500}\n{text[:3000]}")
    os.environ.clear()
    os.environ.update(environment)


def answer(folder: Path, text: str, overrides: list[str]) -> bool:
    """Whether a recipe is accepted. Raises what is not ours, and Wrong for a broken promise."""
    path = folder / "case.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        recipe = load_recipe(str(path), overrides)
        said = check(recipe)
        written = folder / "written.yaml"
        written.write_text(recipe.to_yaml(), encoding="utf-8")
        again = load_recipe(str(written), [])
        before, after = without_secrets(recipe.resolved()), without_secrets(again.resolved())
        if before != after:
            raise Wrong(f"is read again as {after}, and was {before}")
        accepted = True
    except (ValueError, FileNotFoundError) as error:
        if not _ours(error):
            raise
        said, accepted = _message(error), False
    require_plain(said)
    if any(CANARY in module for module in list(sys.modules)):
        raise Wrong("a module that the recipe names was imported")
    return accepted


def require_plain(said: str) -> None:
    """Raise Wrong unless a message has only printable characters, in lines that are not too long."""
    for line in said.split("\n"):
        if not line.strip() or not line.isprintable() or len(line) > 2 * LONGEST_LINE:
            raise Wrong(f"says {line[:2000]!r}")


def _ours(error: Exception) -> bool:
    """Whether an error was raised in a line of this package, as a ValueError or FileNotFoundError proper."""
    if isinstance(error, RecipeError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and not isinstance(error, UnicodeError) and len(str(error)) > 10


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
