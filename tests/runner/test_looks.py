"""`experiment.replicates: auto`: the looks, and a run that goes from one to the next, also after a stop."""

from __future__ import annotations

import json
import shutil

import pytest

from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.recipe.sections import Experiment
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.verdict import NO, UNDECIDED, YES, Verdict, verdict
from tests.result_lines import line
from tests.runner.test_run import command

BOTH = "experiment.controls={random_mask: {rounds: [1]}, random_reinit: {rounds: [1]}}"
AUTO = ["experiment.replicates=auto", BOTH]
TINY = ["training.max_steps=20", "training.eval_steps=10", "lottery.num_rounds=1"]


@pytest.mark.parametrize(
    ("most", "looks"),
    [(3, [3]), (4, [3, 4]), (5, [3, 5]), (20, [3, 5, 8, 12, 18, 20]), (30, [3, 5, 8, 12, 18, 27, 30])],
)
def test_the_looks(most, looks):
    assert Experiment(replicates="auto", max_replicates=most).looks() == looks
    assert Experiment(replicates=7).looks() == [7]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment.replicates=auto"], "takes both random_reinit and random_mask at one round"),
        (
            [
                "experiment.replicates=auto",
                "experiment.controls={random_mask: {rounds: [1]}, random_reinit: {rounds: [2]}}",
            ],
            "takes both random_reinit and random_mask at one round",
        ),
        (["experiment.replicates=3", "experiment.max_replicates=9"], "is for experiment.replicates: auto"),
        ([*AUTO, "experiment.max_replicates=2"], "experiment.max_replicates is 2; it must be 3 or more"),
        ([*AUTO, "training.seed=4294967290"], "replicate 19 would have the seed"),
        (
            ["experiment.replicates=auto", "lottery.num_rounds=999999999", "experiment.controls=[random_mask]"],
            "takes both",
        ),
        (["experiment.replicates=later"], "experiment.replicates is 'later'; it must be a whole number or auto"),
    ],
)
def test_what_is_refused(words, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("quickstart", words)


def decided(winning: float, control: float) -> Verdict:
    found = [line("ticket", 0, r, test_accuracy=0.98 + r / 1e4) for r in range(4)]
    found += [line("ticket", 1, r, test_accuracy=winning + r / 1e4) for r in range(4)]
    for name in ("random_reinit", "random_mask"):
        found += [line(name, 1, r, test_accuracy=control + r % 3 / 300) for r in range(4)]

    return verdict(Results(found))


def test_what_decides():
    assert decided(0.98, 0.9).decided and decided(0.98, 0.9).rounds[0].winning == YES
    assert decided(0.9, 0.9).decided and decided(0.9, 0.9).rounds[0].winning == NO
    assert not decided(0.98, 0.979).decided and decided(0.98, 0.979).rounds[0].winning == UNDECIDED


def test_a_run_adds_replicates_until_the_budget_is_spent_and_a_second_run_adds_none(tmp_path):
    words = [
        "run",
        "quickstart",
        *TINY,
        *AUTO,
        "experiment.max_replicates=4",
        f"training.output_dir={tmp_path / 'out'}",
    ]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "undecided after 3 replicates: 1 more" in done.stdout
    found = read_results(tmp_path / "out")
    assert found.replicates() == [0, 1, 2, 3] and found.looks == 2 and len(found.lines) == 4 * 4
    assert "1/2 of these error rates" in (tmp_path / "out" / "report" / "report.md").read_text()

    # stopped between the looks: without the last replicate, and without a ticket
    before = (tmp_path / "out" / "results.jsonl").read_text()
    shutil.rmtree(tmp_path / "out" / "replicate-3")
    again = command(*words, "--workers", "2")
    assert again.returncode == 0, again.stderr

    def without_time(text):
        return [{k: v for k, v in json.loads(entry).items() if k != "train_seconds"} for entry in text.splitlines()]

    assert without_time((tmp_path / "out" / "results.jsonl").read_text()) == without_time(before)
    third = command(*words)
    assert third.returncode == 0 and "[1/" not in third.stdout
