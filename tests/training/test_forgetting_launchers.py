"""Forgetting under every launcher, on two real processes: the numbers of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import launched

pytestmark = pytest.mark.timeout(900)
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs hf_lottery[deepspeed]")
SETUPS = ["ddp", "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]


def reports(setup: str, folder: Path, count: int) -> list[dict]:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.forgetting", setup, str(folder), str(count)],
        env={**environment, **launched.ENVIRONMENT.get(setup, {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{setup}-{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    return reports("single", tmp_path_factory.mktemp("one"), 1)[0]


@pytest.mark.parametrize("setup", SETUPS)
def test_two_processes_find_what_one_does(setup, one, tmp_path):
    first, second = reports(setup, tmp_path, 2)
    assert first == second
    assert first["lines"][0][0] == first["lines"][1][0] == one["lines"][0][0]  # before training: the same bits
    for found, expected in zip(first["lines"], one["lines"], strict=True):
        assert found[1] == pytest.approx(expected[1], abs=1e-6)
    assert first["again"] == first["lines"][1][1]  # the model is whole after it was measured
    assert first["steps"] == one["steps"] == [6, 6]
