"""benchmarks/write_results.py and compare_runs.py: the page of measured results."""

import importlib
from pathlib import Path

import pytest

from tests.result_lines import line, lines, write_folder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("write_results")


def test_a_section_an_output_folder_with_command_verdict_plots_and_tables(script, tmp_path):
    first, second = (write_folder(tmp_path / name, lines(3)) for name in ("first", "second"))
    (second / "command").write_text("hf-lottery run quickstart experiment.replicates=3\n")
    page = tmp_path / "docs" / "results.md"
    script.write_page([first, second], page)
    text = page.read_text()
    assert text.index("## first") < text.index("## second")
    assert f"hf-lottery run {first / 'recipe.yaml'}" in text
    assert "```\nhf-lottery run quickstart experiment.replicates=3\n```" in text
    assert text.count("**Matching down to 13.7% density (round 3)") == 2
    # 3 replicates x (5 tickets + 4 x 3 re-initialised + 4 random masks), 12.5 s each
    assert "63 networks of 2,000 steps, 3 replicates; 13.1 minutes of training in all." in text
    assert "![accuracy against density](results/first-accuracy.png)" in text
    assert (page.parent / "results" / "first-accuracy.png").is_file()


def test_what_the_paper_reports_stands_beside_what_was_measured(script, tmp_path):
    found = [
        line("ticket", 0, density=1.0, early_stop_step=1000, early_stop_test_accuracy=0.980),
        line("ticket", 1, density=0.2107, early_stop_step=600, early_stop_test_accuracy=0.985),
        line("random_reinit", 1, density=0.2107, early_stop_step=1500, early_stop_test_accuracy=0.978),
        line("ticket", 2, density=0.0358, early_stop_step=1100, early_stop_test_accuracy=0.979),
    ]
    script.write_page([write_folder(tmp_path / "run", found)], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    for row in (
        "| 21.1% | early-stop 38% earlier than dense | 600 steps against 1,000: 40% earlier, 1.67× (at 21.1%) |",
        "| 600 steps against 1,500: 60% earlier, 2.50× (at 21.1%) |",
        "| half a point above random re-initialisation | +0.70 points (at 21.1%) |",
        "| 13.5% | accuracy at early-stop more than 0.3 points above dense | the run has no such density |",
        "| 1,100 steps against 1,000: 10% later, 0.91× (at 3.58%) |",
    ):
        assert row in text


def test_other_runs_sections_stay_and_a_kept_source_writes_the_same_section(script, tmp_path):
    first, second = (write_folder(tmp_path / name, lines(3)) for name in ("first", "second"))
    (first / "command").write_text("hf-lottery run quickstart\n")
    page = tmp_path / "docs" / "results.md"
    script.write_page([first], page)
    script.write_page([second], page)
    both = page.read_text()
    assert both.startswith("# Measured results\n\nWritten by") and both.index("## first") < both.index("## second")
    write_folder(first, lines(2))
    script.write_page([first], page)
    changed = page.read_text()
    assert changed.index("## first") < changed.index("## second")
    assert changed[changed.index("## second") :] == both[both.index("## second") :]
    assert "2 replicates;" in changed and changed.count("## first") == 1
    script.write_page([page.parent / "results" / "first"], page)
    assert page.read_text() == changed


def test_two_folders_of_one_name_are_refused(script, tmp_path):
    with pytest.raises(ValueError, match="two of the output folders have one name"):
        script.write_page([tmp_path / "a" / "run", tmp_path / "b" / "run"], tmp_path / "results.md")


def test_runs_of_one_task_stand_in_one_table_with_their_means(script, tmp_path):
    compare = importlib.import_module("compare_runs")
    lines_of = {
        "wide": [line("ticket", 0, density=1.0, kept=1000, test_accuracy=0.98, test_loss=0.125)],
        "narrow": [
            line("ticket", 1, replicate, density=0.1, kept=100, test_accuracy=0.9 + 0.02 * replicate, test_loss=0.25)
            for replicate in (0, 1)
        ],
    }
    folders = [write_folder(tmp_path / name, found) for name, found in lines_of.items()]
    compare.write_comparison("widths", folders, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "## widths" in text
    assert "| wide | dense | 100% | 1,000 | 2,000 | 0.125 | 98.00% |" in text
    assert "| narrow | ticket, round 1 | 10.0% | 100 | 2,000 | 0.25 | 91.00% |" in text
    assert (tmp_path / "results" / "narrow" / "results.jsonl").is_file()


def test_criteria_before_training_are_ranked_beside_pruning_after_it(script, tmp_path):
    def found(control, round, replicate, accuracy):
        densities = {"hidden.weight": [1000, 1000], "classifier.weight": [50, 50]}
        if round:
            densities = {"hidden.weight": [10, 1000], "classifier.weight": [11, 50]}
        values = {"control": control, "round": round, "density": 0.02 if round else 1.0, "densities": densities}
        return line("ticket", 0, replicate) | values | {"test_accuracy": accuracy + 0.001 * replicate}

    arms = [("ticket", 0, 0.98), ("ticket", 6, 0.96), ("one_shot", 6, 0.95)]
    arms += [("random", 6, 0.80), ("snip", 6, 0.94), ("synflow", 6, 0.955)]
    folder = write_folder(tmp_path / "criteria", [found(*arm[:2], r, arm[2]) for r in range(3) for arm in arms])
    script.write_page([folder], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    labels = [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| ") and "%" in row]
    assert labels == [
        "| dense", "| magnitude after training, 6 rounds", "| synflow before training",
        "| magnitude after training, one-shot", "| snip before training", "| random before training",
    ]  # fmt: skip
    snip = "| snip before training | 94.10% (94.00–94.20) | +14.00 points [+14.00, +14.00] | −1.00 points"
    assert snip in text and text.split(snip)[1].startswith(" [−1.00, −1.00] | 1%, 22.0% |")
    assert "above random synflow, snip; " in text
    assert "below magnitude after training in one go snip, random; not below it synflow." in text
