"""How many replicates a run needs, by the noise of another."""

from __future__ import annotations

import numpy
import pytest

from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.results.statistics import replicates_to_decide
from hf_lottery.runner.pilot import replicates_line
from tests.result_lines import line, write


def pilot(folder, **more):
    random = numpy.random.default_rng(0)
    found = []
    for name, number in [("ticket", 0), ("ticket", 1), ("ticket", 2), ("random_reinit", 2)]:
        found += [line(name, number, r, test_accuracy=0.98 + random.normal(0, 0.002), **more) for r in range(5)]
    return write(folder, found), found


def test_the_line_counts_for_the_greatest_deviation_and_the_planned_rounds(tmp_path):
    folder, found = pilot(tmp_path / "pilot")
    values = {}
    for entry in found:
        values.setdefault((entry["control"], entry["round"]), []).append(entry["test_accuracy"])
    dense, tickets = values["ticket", 0], [values["ticket", 1], values["ticket", 2]]
    to_dense = numpy.mean([numpy.var(numpy.subtract(ticket, dense), ddof=1) for ticket in tickets]) ** 0.5
    to_control = numpy.std(numpy.subtract(values["ticket", 2], values["random_reinit", 2]), ddof=1)
    recipe = load_recipe("quickstart", ["lottery.num_rounds=4", "experiment.controls=[random_mask, random_reinit]"])
    needed = replicates_to_decide(0.005, max(to_dense, to_control), 0.025 / 4)
    said = replicates_line(recipe, folder)
    assert f"{needed} for 0.50 points" in said and "4 densities are judged" in said and "(n = 5)" in said


def test_a_recipe_whose_own_folder_shows_no_noise_has_no_line(tmp_path):
    recipe = load_recipe("quickstart", [f"training.output_dir={tmp_path / 'none'}"])
    assert replicates_line(recipe, None) is None
    write(tmp_path / "none", [line("ticket", 0), line("ticket", 1)])
    assert replicates_line(recipe, None) is None
    with pytest.raises(ValueError, match="shows no noise: a pilot has at least 2 replicates"):
        replicates_line(recipe, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no results.jsonl"):
        replicates_line(recipe, tmp_path / "nothing")


def test_a_pilot_without_a_dense_value_shows_no_noise_and_a_negative_loss_has_a_size(tmp_path):
    recipe = load_recipe("quickstart")
    folder, found = pilot(tmp_path / "pilot")
    write(folder, [entry | ({"test_accuracy": float("nan")} if not entry["round"] else {}) for entry in found])
    with pytest.raises(ValueError, match="shows no noise"):
        replicates_line(recipe, folder)
    loss = {"metric": "loss", "greater_is_better": False}
    write(folder, [entry | loss | {"test_loss": entry["test_accuracy"] - 3} for entry in found])
    assert "for 0.0101" in replicates_line(recipe, folder)
