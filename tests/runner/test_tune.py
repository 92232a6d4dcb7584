"""A run on digits with other learning rates: the better one is taken, shown and published, and nothing runs twice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from hf_lottery import Ticket
from hf_lottery.cli.instability import instability_of_run
from hf_lottery.layout import Network
from hf_lottery.training.network_folder import NetworkFolder
from tests.runner.test_run import command
from tests.tiny import same

OWN, LARGER = 1e-05, 0.005
RECIPE = [
    *("quickstart", "training.max_steps=40", "training.eval_steps=20", f"training.learning_rate={OWN}"),
    *("lottery.num_rounds=1", "experiment.replicates=1", "experiment.tune=learning_rate", "hub.include_model=true"),
    f"experiment.controls={{random_mask: {{learning_rate: [{OWN}, {LARGER}]}}, random_reinit: {{}}}}",
]
COUNT = 2 * 4  # rates x (dense, ticket, two controls)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "out"
    done = command("run", *RECIPE, f"training.output_dir={folder}", "--workers", "2")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def validation(folder) -> dict[tuple[str, int, float], float]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == COUNT
    found: dict[tuple[str, int, float], list[float]] = {}
    for line in lines:
        found.setdefault((line["control"], line["round"], line["learning_rate"]), []).append(line["eval_accuracy"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def test_the_larger_rate_is_better_at_validation_and_is_taken(finished):
    folder, printed = finished
    means = validation(folder)
    assert all(means[name, number, LARGER] > means[name, number, OWN] + 0.2 for name, number, _ in means)
    report = (folder / "report" / "report.md").read_text()
    assert f"| network | density | {OWN} (own) | {LARGER} |" in report
    for name, number, said in (("ticket", 0, "dense"), ("random_mask", 1, "random mask")):
        row = next(line for line in report.splitlines() if line.startswith(f"| {said} |"))
        small, large = (f"{100 * means[name, number, rate]:.2f}%" for rate in (OWN, LARGER))
        assert f"| {small} (n = 1) | {large} (taken, n = 1) |" in row
    assert printed.count(f"lr {LARGER}") == 4 and f"lr {OWN}" not in printed


def test_a_finished_run_trains_nothing_and_keeps_its_ticket(finished):
    folder, _ = finished
    before = (folder / "ticket" / "ticket.json").stat().st_mtime_ns
    again = command("run", *RECIPE, f"training.output_dir={folder}")
    assert again.returncode == 0 and "replicate 0 · round" not in again.stdout
    assert (folder / "ticket" / "ticket.json").stat().st_mtime_ns == before
    assert f"lr {LARGER}" in again.stdout


def test_the_plan_and_the_check_count_all_of_them(finished):
    folder, _ = finished
    plan = command("run", *RECIPE, f"training.output_dir={folder}", "--plan")
    assert f"networks  {COUNT}, of which {COUNT} are finished and 0 are left" in plan.stdout
    check = command("check", *RECIPE)
    assert f"{COUNT} to train" in check.stdout and f"learning rates {OWN}, {LARGER}" in check.stdout


def test_the_ticket_says_the_rate_and_its_model_was_trained_at_it(finished):
    folder, _ = finished
    said = f"Its results are of networks trained at learning rate {LARGER}, the best of those tried by mean validation"
    assert said in (folder / "ticket" / "README.md").read_text()
    ticket = Ticket.from_pretrained(folder / "ticket")
    assert len(ticket.info["results"]) == COUNT and "tune: learning_rate" in ticket.info["recipe"]
    trained = NetworkFolder(Network(0, 1, learning_rate=LARGER).folder(folder)).trained().tensors
    published = load_file(folder / "ticket" / "model.safetensors")
    assert same({name: published[name] for name in trained}, trained)
    shown = command("show", folder)
    assert f"lr {LARGER}" in shown.stdout


def test_instability_at_a_later_step_can_be_measured(finished):
    folder, _ = finished
    (found,) = instability_of_run(folder, 1, 5, seeds=(1, 2), points=3)[:1]
    assert found.rewind_step == 5
