"""`lottery.rewind_step: auto` on the digits: measured once, kept, and used."""

from __future__ import annotations

import json

import pytest

from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.build import make_experiment
from hf_lottery.runner.rewind_step import settle_rewind_step
from hf_lottery.runner.run import claim_output_folder

SMALL = ["training.max_steps=60", "training.eval_strategy='no'", "lottery.num_rounds=1", "experiment.controls=[]"]


def recipe(folder, *words):
    return load_recipe("quickstart", [*SMALL, f"training.output_dir={folder}", "lottery.rewind_step=auto", *words])


def test_the_earliest_stable_step_is_measured_once_and_used(tmp_path):
    loaded = recipe(tmp_path, "lottery.rewind_steps=[40, 0]")
    root = claim_output_folder(loaded)
    settled = settle_rewind_step(loaded, root)
    decision = json.loads((root / "rewind_step.json").read_text())
    first = min((int(k) for k, value in decision["instability"].items() if value < 0.02))
    assert decision["rewind_step"] == first == settled.lottery_config().rewind_step
    assert all(value >= 0.02 for k, value in decision["instability"].items() if int(k) < first)
    when = (root / "rewind_step.json").stat().st_mtime_ns
    assert settle_rewind_step(loaded, root).lottery == settled.lottery
    assert (root / "rewind_step.json").stat().st_mtime_ns == when
    make_experiment(settled, root).run()
    assert (root / "command").read_text().startswith("hf-lottery run quickstart training.max_steps=60")


def test_no_stable_step_is_said_with_what_was_measured(tmp_path):
    loaded = recipe(tmp_path, "lottery.rewind_steps=[0]", "training.learning_rate=0.5")
    with pytest.raises(ValueError, match=r"not stable at any of them \([\d.]+% at step 0; stable is below 2%\)"):
        settle_rewind_step(loaded, claim_output_folder(loaded))


def test_auto_needs_a_list(tmp_path):
    with pytest.raises(ValueError, match="say in lottery.rewind_steps which steps to try"):
        recipe(tmp_path)


def test_a_step_from_which_copies_diverge_is_not_stable(tmp_path):
    loaded = recipe(tmp_path, "lottery.rewind_steps=[0]", "training.learning_rate=1e12", "training.optim=sgd")
    with pytest.raises(
        ValueError, match=r"not stable at any of them \(at step 0 the copy under data order 1 diverged"
    ):
        settle_rewind_step(loaded, claim_output_folder(loaded))
