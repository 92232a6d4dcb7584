"""`hf-lottery run` where some seeds diverge under the learning rate: the rest is finished, judged and published."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from hf_lottery import Ticket
from hf_lottery.cli.ticket import show
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.report.report import write_report
from hf_lottery.results.diverged import DivergedError
from hf_lottery.runner.plan import make_plan
from hf_lottery.runner.run import run
from tests.runner.test_run import command

SMALL = [
    "training.max_steps=24", "training.eval_steps=8", "lottery.num_rounds=1", "model.config.hidden_sizes=[32, 16]",
    "training.use_cpu=true", "training.optim=sgd", "experiment.replicates=2",
]  # fmt: skip
SOME = "training.learning_rate=100"  # of the seeds 42 to 46 three diverge with 50 to 500, always the same ones
ALL = "training.learning_rate=1e4"


def recipe(folder, *words):
    return load_recipe("quickstart", [*SMALL, f"training.output_dir={folder}", *words])


def lines(folder) -> list[dict]:
    def no_constant(text):
        raise AssertionError(f"{text} is no JSON")

    text = (folder / "results.jsonl").read_text()
    return [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run whose replicate 0 (seed 42) diverges, and what was printed."""
    folder, screen = tmp_path_factory.mktemp("run"), io.StringIO()
    run(recipe(folder, SOME), Console(file=screen, width=200))
    return folder, screen.getvalue()


def test_the_screen_says_what_diverged_and_what_is_left_out(finished):
    folder, screen = finished
    first = lines(folder)[0]
    where = f"replicate 0 diverged at round 0, step {first['steps']} (weights of 'hidden.0.weight')"
    assert first["diverged"] == {"step": first["steps"], "tensor": "hidden.0.weight"}
    assert f"{where}; left out: replicate 0 · round 1 · ticket; replicate 0 · round 1 · random reinit" in screen
    assert f"1 of 2 replicates diverged: {where}." in " ".join(screen.split())
    assert "n = 1 of 2" in screen and "The ticket is that of replicate 1." in screen
    assert [line["replicate"] for line in lines(folder)] == [0, 1, 1, 1]


def test_report_ticket_and_card_say_it(finished):
    folder, _ = finished
    report = write_report(folder).with_name("report.md").read_text()
    assert "## What diverged" in report and "## What is missing" not in report
    assert "left out, because they stand on it: replicate 0 · round 1 · random reinit; replicate 0" in report
    ticket = Ticket.from_pretrained(folder / "ticket")
    own = [line for line in lines(folder) if line["control"] == "ticket" and line["round"] == 1]
    assert ticket.mask.fingerprint() == own[0]["fingerprint"] and own[0]["replicate"] == 1
    assert ticket.info["results"][0]["diverged"] == lines(folder)[0]["diverged"]
    assert [sorted(density) for density in ticket.info["densities"]] == [sorted(own[0]["densities"])] * 2
    card = (folder / "ticket" / "README.md").read_text()
    assert "1 of 2 replicates diverged: replicate 0" in card and "The ticket is that of replicate 1." in card
    screen = io.StringIO()
    show(str(folder), console=Console(file=screen, width=200))
    assert "1 of 2 replicates diverged: replicate 0" in screen.getvalue()


def test_a_second_start_trains_nothing_and_writes_no_ticket(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (*folder.rglob("result.json"), folder / "ticket/ticket.json")}
    screen = io.StringIO()
    run(recipe(folder, SOME), Console(file=screen, width=200))
    assert "[1/" not in screen.getvalue()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (make_plan(recipe(folder, SOME)).networks, make_plan(recipe(folder, SOME)).finished) == (4, 4)


def test_if_all_diverge_there_is_a_report_and_one_sentence_each_time(tmp_path):
    for _ in range(2):
        with pytest.raises(
            DivergedError, match=r"so there is no ticket in .*2 of 2 replicates diverged: replicate 0 "
        ):
            run(recipe(tmp_path, ALL), Console(quiet=True))
    assert len(lines(tmp_path)) == 2 and not (tmp_path / "ticket").exists()
    assert "**No verdict: no replicate has both" in (tmp_path / "report" / "report.md").read_text()


def test_the_command_line_says_so_with_status_2_also_with_two_workers(tmp_path):
    done = command("run", "quickstart", *SMALL, ALL, f"training.output_dir={tmp_path}", "--workers", "2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "hf-lottery: no replicate has a ticket that did not diverge" in done.stderr
    assert "2 of 2 networks trained" in done.stdout and "No verdict" in done.stdout
