"""What people do around a run: a home folder, a first attempt that failed, diverged networks, two flags at once."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path

import pytest
from rich.console import Console

from hf_lottery.cli import main
from hf_lottery.files import write_text
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.results.evaluations import summarise
from hf_lottery.results.linear_path import LinearPath
from hf_lottery.runner.run import run

SMALL = ["training.max_steps=4", "training.eval_steps=2", "lottery.num_rounds=0", "training.use_cpu=true"]


def test_a_tilde_is_the_home_folder_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    root = run(load_recipe("quickstart", [*SMALL, "training.output_dir=~/runs"]), Console(quiet=True))
    assert root == tmp_path / "runs" and (root / "results.jsonl").is_file()
    assert not (tmp_path / "~").exists()


def test_a_first_attempt_that_failed_does_not_keep_the_folder(tmp_path):
    words = [*SMALL, f"training.output_dir={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="rewind_step"):
        run(load_recipe("quickstart", [*words, "lottery.rewind_step=50"]), Console(quiet=True))
    run(load_recipe("quickstart", words), Console(quiet=True))
    with pytest.raises(ValueError, match="holds results of another recipe"):
        run(load_recipe("quickstart", [*words, "training.learning_rate=0.5"]), Console(quiet=True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--launcher", "ddp:2", "--workers", "2"], "leave out --workers and --submit"),
        (["--submit", "local", "--workers", "0"], "--workers is 0"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["hf-lottery", "run", "quickstart", f"training.output_dir={tmp_path}", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_plan_under_a_launcher_trains_nothing(tmp_path, monkeypatch, capsys):
    words = ["run", "quickstart", *SMALL, f"training.output_dir={tmp_path / 'out'}", "--launcher", "ddp:2", "--plan"]
    monkeypatch.setattr("sys.argv", ["hf-lottery", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code and "networks" in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_loss_that_is_no_number_is_never_the_least():
    history = [{"step": 1, "eval_loss": math.nan}, {"step": 2, "eval_loss": 0.3}, {"step": 3, "eval_loss": math.inf}]
    assert summarise(history)["early_stop_step"] == 2
    assert "early_stop_step" not in summarise(history[:1])
    assert not LinearPath([0, 0.5, 1], [20, math.nan, 20], True).stable


def _write_often(path: Path) -> None:
    for _ in range(300):
        write_text(path, "text" * 1000)


def test_two_processes_write_one_file(tmp_path):
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=_write_often, args=(tmp_path / "file",)) for _ in range(2)]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "text" * 1000
