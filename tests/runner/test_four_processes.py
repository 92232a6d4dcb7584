"""Four real processes over gloo: as test_launchers.py, of the search alone."""

from __future__ import annotations

import json

import pytest

from tests import launched
from tests.runner.test_launchers import SETUPS, TYPES, close, started

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    """The search of one process at the same global batch."""
    return launched.search("single", tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("setup", SETUPS)
def test_four_processes_find_the_ticket_of_one(tmp_path, one, setup):
    done = started("tests/launched.py", "search", setup, str(tmp_path), "4", **launched.ENVIRONMENT.get(setup, {}))
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text())["search"] | {"bools": None} for rank in range(4)]
    report = ranks[0]
    assert ranks == [report] * 4
    assert (report["distributed_type"], report["world_size"]) == (TYPES[setup], 4)
    for key in ("fingerprints", "kept", "ticket"):
        assert report[key] == one[key]
    for key in ("losses", "eval_loss", "weights", "rewind"):
        assert close(report[key], one[key]), key
    assert report["masked_steps"] == one["masked_steps"] > 0
    assert report["moved"] == report["continued"]["moved"] == []
    for key in ("ticket", "weights", "eval_loss"):  # of the search that was interrupted
        assert report["continued"][key] == report[key]
