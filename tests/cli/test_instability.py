"""`hf-lottery report` and `hf-lottery instability` on a run of real digits, a few steps long."""

import json

import pytest
from typer.testing import CliRunner

from hf_lottery.cli import app
from hf_lottery.cli.instability import instability_of_run
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.run import run
from hf_lottery.training.network_folder import NetworkFolder


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    """Two replicates of two rounds, with a control, 12 steps a network."""
    folder = tmp_path_factory.mktemp("run") / "out"
    settings = [
        "lottery.num_rounds=1", "experiment.replicates=2", "training.max_steps=12", "training.eval_steps=4",
        "model.config.hidden_sizes=[8]", f"training.output_dir={folder}",
    ]  # fmt: skip
    return run(load_recipe("quickstart", settings))


def test_a_report_of_a_real_run(output_dir):
    done = CliRunner().invoke(app, ["report", str(output_dir)], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(output_dir / "report" / "index.html")
    page = (output_dir / "report" / "index.html").read_text(encoding="utf-8")
    assert "Undecided: 2 replicates, and a verdict needs 3 replicates." in page
    assert "What is missing" not in page
    for plot in ("accuracy", "early-stop-step", "learning-curves", "density-per-layer", "mask-overlap"):
        assert f'id="plot-{plot}"' in page


def test_instability_of_a_real_run_is_measured_once_and_reported(output_dir):
    arguments = ["instability", str(output_dir), "--round", "1", "--rewind-step", "3", "--seeds", "1,2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "instability of round 1 (80.1% density) at step 3" in done.stdout
    assert "mean of 2 pairs" in done.stdout
    folder = output_dir / "instability" / "round-01-step-3"
    for replicate in range(2):
        measured = json.loads((folder / f"replicate-{replicate}" / "instability.json").read_text())
        assert (measured["rewind_step"], len(measured["paths"][0]["errors"])) == (3, 30)
        copy = NetworkFolder(folder / f"replicate-{replicate}" / "order-1")
        assert copy.mask() == NetworkFolder(output_dir / f"replicate-{replicate}" / "round-01").mask()
    files = sorted(folder.glob("replicate-*/order-*/result.json"))
    before = [file.stat().st_mtime_ns for file in files]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert len(before) == 4 and [file.stat().st_mtime_ns for file in files] == before
    CliRunner().invoke(app, ["report", str(output_dir)], catch_exceptions=False)
    assert "<h2>Instability</h2>" in (output_dir / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": 7, "rewind_step": 0}, "round 7 is not finished in .*: finished rounds are 0, 1"),
        ({"number": 1, "rewind_step": 12}, "rewind_step"),
        ({"number": 1, "rewind_step": -1}, "rewind step is -1; it must be a number of steps, 0 or more"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(output_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        instability_of_run(output_dir, **arguments)


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no recipe\.yaml"):
        instability_of_run(tmp_path, 0, 0)
