"""benchmarks/data_order.py: its table from written-down lines, against differences computed here."""

import importlib
from pathlib import Path

import numpy
import pytest
from scipy import stats

from tests.result_lines import line, write

ACCURACIES = {  # run -> round -> accuracy of each replicate
    "replay": {0: [0.970, 0.972, 0.971], 1: [0.981, 0.984, 0.982], 2: [0.975, 0.977, 0.973]},
    "fresh": {0: [0.970, 0.972, 0.971], 1: [0.979, 0.980, 0.981], 2: [0.971, 0.974, 0.972]},
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("data_order")


def write_runs(folder: Path, **changes) -> Path:
    for order, rounds in ACCURACIES.items():
        found = [
            line("ticket", number, replicate, test_accuracy=value)
            for number, values in rounds.items()
            for replicate, value in enumerate(values)
        ]
        write(folder / order, [{**one, **(changes if order == "fresh" else {})} for one in found])
    return folder


def points(differences: numpy.ndarray) -> str:
    low, high = stats.t.interval(0.95, len(differences) - 1, differences.mean(), stats.sem(differences))
    return f"{100 * differences.mean():+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]".replace("-", "−")


def test_the_table_has_paired_differences_for_each_density_and_their_mean(script, tmp_path):
    text = script.section("data-order-x", write_runs(tmp_path))
    a, b = ({number: numpy.array(v) for number, v in ACCURACIES[order].items()} for order in ("replay", "fresh"))
    rows = [text.splitlines()[i] for i in (-3, -2, -1)]
    for number, row in zip((1, 2), rows, strict=False):
        expected = [points(a[number] - b[number]), "3", points(a[number] - a[0]), points(b[number] - b[0])]
        assert row.split(" | ")[3:] == [*expected[:3], expected[3] + " |"]
    both = (a[1] + a[2]) / 2 - (b[1] + b[2]) / 2
    assert rows[2].startswith("| mean of all |") and points(both) in rows[2]
    assert (
        f"**Not shown that replaying the data order flatters tickets: replay − fresh is {points(both)}, n = 3" in text
    )


def test_runs_whose_dense_networks_differ_are_no_pair(script, tmp_path):
    with pytest.raises(ValueError, match="the dense networks of replicate 0 differ"):
        script.section("x", write_runs(tmp_path, eval_loss=0.09))


@pytest.mark.parametrize("shift, words", [(0.01, "flatters tickets"), (-0.01, "holds back tickets")])
def test_a_difference_that_is_shown_is_said_with_its_direction(script, tmp_path, monkeypatch, shift, words):
    fresh = {
        number: [value - shift + 0.0001 * i for i, value in enumerate(values)] if number else values
        for number, values in ACCURACIES["replay"].items()
    }
    monkeypatch.setitem(ACCURACIES, "fresh", fresh)
    assert f"**The data order that found the mask {words}" in script.section("x", write_runs(tmp_path))
