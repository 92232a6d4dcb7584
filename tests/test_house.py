"""The house keeps its form: small functions, small files, every room on the map. `make lint` checks the floors."""

from __future__ import annotations

from pathlib import Path

import pytest
from radon.complexity import cc_visit

import hf_lottery

PACKAGE = Path(hf_lottery.__file__).parent
REPOSITORY = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_BRANCHES, MOST_LINES = 20, 300


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_functions_and_files_are_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    blocks = [part for block in cc_visit(text) for part in (block, *getattr(block, "methods", ()))]
    assert {block.name: block.complexity for block in blocks if block.complexity > MOST_BRANCHES} == {}


def test_every_room_is_on_the_map_and_says_what_is_in_it():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        assert f"{room.name}/" in page
        assert room.joinpath("__init__.py").read_text(encoding="utf-8").startswith('"""'), room


def test_every_room_travels_in_the_wheel():
    setup = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8").split()
    rooms = {path.parent.relative_to(REPOSITORY).as_posix().replace("/", ".") for path in PACKAGE.rglob("__init__.py")}
    assert rooms <= set(setup)
