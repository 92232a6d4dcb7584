"""Every launcher on two real processes over gloo: the same masks and losses as one process, exactly zero, resumable.

A launch costs seconds of imports in each process, so that each setup is launched once and its report asked many
things. See launched.py for what the processes do.
"""

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
TYPES = {"ddp": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
SETUPS = ["ddp", "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]


def started(*command: str, **environment: str) -> subprocess.CompletedProcess:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **environment}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=root)


def torchrun(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return started("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command, **environment)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    """The report of one process at the same global batch."""
    folder = tmp_path_factory.mktemp("one")
    launched.main("single", folder)
    return json.loads((folder / "rank-0.json").read_text())


@pytest.fixture(scope="module", params=SETUPS)
def two(request, tmp_path_factory) -> tuple[str, list[dict]]:
    """A setup's name and the reports of its two ranks."""
    setup, folder = request.param, tmp_path_factory.mktemp(request.param)
    if setup == "ddp":  # its interruption is the death of a rank
        died = torchrun("tests/launched.py", "die", setup, str(folder))
        assert died.returncode != 0 and "exitcode  : 7" in died.stderr, died.stderr[-3000:]
    done = started("tests/launched.py", "all", setup, str(folder), "2", **launched.ENVIRONMENT.get(setup, {}))
    assert done.returncode == 0, done.stderr[-3000:]
    return setup, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def close(a, b, within: float = 2e-6) -> bool:
    """Numbers, lists or dicts of them, equal to rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], within) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(close(x, y, within) for x, y in zip(a, b, strict=True))
    return abs(a - b) <= within


def test_the_launcher_is_the_one_that_was_asked_for(two):
    setup, reports = two
    for report in reports:
        assert report["search"]["distributed_type"] == TYPES[setup]
        assert report["search"]["world_size"] == 2
        assert report["search"]["sharded"] == (setup in ("fsdp2", "zero3"))


def test_the_ticket_is_that_of_one_process(two, one):
    for report in two[1]:
        for key in ("fingerprints", "kept", "ticket"):
            assert report["search"][key] == one["search"][key]
        assert close(report["search"]["rewind"], one["search"]["rewind"])


def test_losses_and_weights_are_those_of_one_process_to_rounding(two, one):
    for report in two[1]:
        assert close(report["search"]["losses"], one["search"]["losses"])
        assert close(report["search"]["eval_loss"], one["search"]["eval_loss"])
        assert close(report["search"]["weights"], one["search"]["weights"])
        assert close(report["plain"], one["plain"])


def test_pruned_weights_are_zero_on_every_rank_after_every_step(two, one):
    for report in two[1]:
        assert report["search"]["masked_steps"] == one["search"]["masked_steps"] > 0
        assert report["search"]["moved"] == []
        assert report["search"]["continued"]["moved"] == []


def test_a_process_holds_the_bools_of_its_own_weights_alone(two, one):
    setup, reports = two
    assert one["search"]["bools"] >= one["search"]["weights_masked"]
    for report in reports if setup == "fsdp2" else []:
        assert 0 < report["search"]["bools"] < 0.6 * report["search"]["weights_masked"]


def test_ranks_agree_and_disagreement_stops_them(two):
    first, last = [{**report["search"], "bools": None} for report in two[1]]
    assert first == last
    for report in two[1]:
        assert "rank 1 has another mask" in report["disagree"]


def test_pruned_weights_stay_at_theta_k_under_pruned_value_init(two):
    assert [report["held"] for report in two[1]] == [[], []]


def test_a_pruned_weight_that_moves_on_one_rank_is_named_on_all(two):
    first, last = (report["moved"] for report in two[1])
    seen = 6 if two[0].startswith("zero") else 3  # DeepSpeed's weights are compared at the first and last step alone
    assert first == last and first.startswith(f"BrokenMaskError: after step {seen} the pruned weight [")
    assert "of 'classifier.weight'" in first and " is 0.25 and must be 0 " in first


def test_a_network_that_diverges_on_one_rank_stops_all(two):
    first, last = (report["diverged"] for report in two[1])
    assert first == last
    assert first.startswith("DivergedError: round 1 diverged at step 3 (weights of 'classifier.weight')")


def test_an_interrupted_search_continues_bit_for_bit(two):
    for report in two[1]:
        whole, continued = report["search"], report["search"]["continued"]
        assert continued["steps"] == 6  # steps 5 and 6 of round 1, 3 to 6 of round 2
        for key in ("ticket", "weights", "eval_loss"):
            assert continued[key] == whole[key]


@pytest.mark.parametrize("step", [0, 2])
def test_rewinding_replays_with_each_ranks_own_random_numbers(two, step):
    for report in two[1]:
        first, *again = report[f"replay_{step}"]["losses"]
        assert len(first) == launched.STEPS
        assert again == [first, first]


@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_a_mask_that_changes_in_training_is_the_same_on_every_rank_or_refused(two, one, rule):
    setup, reports = two
    first, last = (report[rule] for report in reports)
    assert first == last
    if setup == "ddp":
        assert first["changed"] and first["counts stay"] and first["moved"] == []
        assert first["mask"] == one[rule]["mask"] and close(first["weights"], one[rule]["weights"], 1e-5)
    else:
        assert f"the control {rule} needs whole weights in every process: launch with ddp" in first


def test_ranks_that_do_not_fit_together_are_told_so(two):
    setup, reports = two
    if setup != "ddp":
        pytest.skip("the same code under every launcher")
    for report in reports:
        said = report["refusals"]
        assert "rank 1 has another recipe" in said["recipe"]
        assert "rank 1 has another data set" in said["data"]
        assert "rank 1 does not see" in said["folder"] and "training.output_dir" in said["folder"]
        assert report["snip"] == reports[0]["snip"]  # each rank has looked at its own batches
        assert said["decision"] == "list index out of range"  # raised on rank 0 alone, and heard by all


@pytest.fixture(scope="module")
def one_order(tmp_path_factory) -> dict:
    return launched.order("single", tmp_path_factory.mktemp("one-order"))


@pytest.mark.parametrize("setup", SETUPS)
def test_ranks_share_a_rounds_own_data_order_and_start_with_a_fresh_optimizer(setup, one_order, tmp_path):
    done = started("tests/launched.py", "order", setup, str(tmp_path), "2", **launched.ENVIRONMENT.get(setup, {}))
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text())["order"] for rank in (0, 1)]
    if setup.startswith("zero"):
        assert all("launch with ddp or fsdp2" in report["refused"] for report in reports)
        return
    for number, whole in enumerate(one_order["seen"]):
        parts = zip(*(report["seen"][number] for report in reports), strict=True)
        assert [sorted(a + b) for a, b in parts] == [sorted(batch) for batch in whole]
    assert one_order["seen"][0][2:] != one_order["seen"][1] != one_order["seen"][2]
    for report in reports:
        assert close(report["losses"], one_order["losses"]) and close(report["weights"], one_order["weights"])
