"""A few of the kills, faults and damages of `make crash`, in processes that have everything imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1800)


def crash(*words: str) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.crash", *words]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_a_search_that_was_killed_goes_on_to_the_same_ticket():
    done = crash("kills", "--kills", "25", "--only", "from_step_k,best_at_end,lora", "--processes", "1")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " 0 differences" in done.stdout


@pytest.mark.slow
def test_the_first_kills_of_every_configuration():
    done = crash("kills", "--kills", "60", "--seed", "3")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_disk_that_fails_and_power_that_is_cut():
    done = crash("faults", "--faults", "42")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_damaged_file_is_named_or_does_not_matter():
    done = crash("tears", "--tears", "40")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
