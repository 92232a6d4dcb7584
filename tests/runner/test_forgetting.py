"""Forgetting as a user of a recipe sees it: lines, table, report, card, plan; and what is refused, in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_lottery import cli
from hf_lottery.results.forgetting import AFTER, BEFORE
from tests import tiny_lm

SETTINGS = [
    *("model.gguf_file=null", "data.validation_size=4", "data.test_size=4", "data.max_length=400"),
    *("data.max_new_tokens=3", "data.other_text.tokens=1024", "data.other_text.block_length=128"),
    *("training.max_steps=6", "training.eval_steps=3", "training.learning_rate=1e-2", "training.use_cpu=true"),
    *("training.save_strategy=steps", "training.save_steps=2", "lottery.num_rounds=1"),
    "experiment.controls={random_mask: {rounds: [1]}}",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with a model, a table of instructions, and other text."""
    folder = tmp_path_factory.mktemp("forgetting")
    tiny_lm.save_model(folder / "model")
    tiny_lm.save_table(folder / "table")
    sentences = [f"The castle number {i} was built in {1000 + 7 * i} by a king of the north." for i in range(100)]
    (folder / "other.txt").write_text("\n".join(sentences))
    return folder


def words(here: Path, *more: str, recipe: str = "smollm2/135m-lora", text: str = "other.txt") -> list[str]:
    places = [f"model.name_or_path={here / 'model'}", f"data.path={here / 'table'}"]
    return [recipe, *places, f"data.other_text.path={here / text}", *SETTINGS, *more]


def command(here: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "hf_lottery", "run", *words(here, f"training.output_dir={out}", *more)]


def environment(here: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(here / "cache"), "COLUMNS": "80"}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(here) -> tuple[Path, str]:
    done = subprocess.run(
        command(here, here / "out"), env=environment(here), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return here / "out", done.stdout


@pytest.mark.timeout(600)
def test_every_network_has_it_and_every_page_shows_it(finished):
    out, said = finished
    found = lines(out)
    assert len(found) == 6 and len({line[BEFORE] for line in found}) == 1  # B = 0 in every replicate
    assert all(line[AFTER] != line[BEFORE] for line in found)
    assert {line["other_text_tokens"] for line in found} == {1024}
    dense = [line[AFTER] - line[BEFORE] for line in found if line["round"] == 0]
    mean = f"{sum(dense) / 2:+.3f}".replace("-", "−")
    assert "forgetting" in said and mean in said and "…" not in said
    report, card = (out / "report" / "report.md").read_text(), (out / "ticket" / "README.md").read_text()
    for page in (report, card):
        assert f"| {mean} (" in page and "1,024 tokens" in page and "| forgetting | random_mask |" in page
    assert "## Forgetting" in report and f"| {mean} [" in report
    assert "other text: 1,024 tokens of" in (out / "data-notes.txt").read_text()


@pytest.mark.timeout(600)
def test_killed_in_the_middle_it_is_the_same(finished, here):
    out = here / "killed"
    process = subprocess.Popen(
        command(here, out), env=environment(here), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(out.rglob("checkpoint-*/manifest.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "replicate-1" / "round-01" / "result.json").exists()
    again = command(here, out)
    done = subprocess.run(again, env=environment(here), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [(line[BEFORE], line[AFTER]) for line in lines(finished[0])]
    assert [(line[BEFORE], line[AFTER]) for line in lines(out)] == measured


@pytest.fixture
def refused(here, monkeypatch, capsys):
    """What `hf-lottery` says of a mistake, in one line."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", here / "cache")

    def run(*given):
        monkeypatch.setattr(sys, "argv", ["hf-lottery", *given])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and "Traceback" not in err
        (line,) = [line for line in err.splitlines() if "data.other_text" in line]
        return line

    return run


@pytest.mark.parametrize("what", ["check", "run"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.other_text.path=gone.txt"], "data.other_text.path is 'gone.txt', and there is no such file or folder"),
        (["data.other_text.path=README.md"], "no file that ends in '.md' is read: give one that ends in .txt, .json"),
        (["data.other_text.path={}/table"], "the task's own data: name text that the task does not hold"),
        (["data.other_text.tokens=0"], "data.other_text.tokens is 0; it must be "),
        (["data.other_text.tokens=100"], "tokens is 100 and data.other_text.block_length is 128, so that there is n"),
        (["data.other_text.tokens=a"], "data.other_text.tokens is 'a'; it must be a whole number"),
        (["data.other_text.colum=x"], "data.other_text.colum is not a setting of the section data"),
        (["data.other_text=[a]"], "data.other_text is ['a']; it must be a mapping"),
        (["model={architecture: llama}"], "data.other_text shows what a pretrained model forgets"),
    ],
)  # fmt: skip
def test_mistakes_that_are_seen_before_anything_is_read(what, more, said, here, refused, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    more = [word.replace("{}", str(here)) for word in more]
    assert said in refused(what, *words(here, *more, f"training.output_dir={here / 'refused'}"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.other_text.tokens=65536"], "tokens, and data.other_text.tokens asks for 65,536: set data.other_te"),
        (["data.other_text.block_length=600"], "data.other_text.block_length is 600, but the model's context is 512"),
        (["data.other_text.path={}/rows.jsonl"], "has no column 'text' but body: name the column with data.other"),
    ],
)
def test_text_that_does_not_fit_is_refused_before_training(more, said, here, refused):
    (here / "rows.jsonl").write_text(json.dumps({"body": "a text"}) + "\n")
    more = [word.replace("{}", str(here)) for word in more]
    assert said in refused("run", *words(here, *more, f"training.output_dir={here / 'refused'}"))
    assert not list((here / "refused").rglob("result.json"))


@pytest.mark.parametrize("recipe", ["imdb/minilm", "quickstart", "cifar10/vit"])
def test_tasks_without_a_loss_on_text(recipe, refused):
    said = refused("check", recipe, "data.other_text.path=a.txt")
    assert "data.other_text is for the task causal_lm; " in said and "has no loss on text: leave it out" in said


def test_the_plan_counts_its_time(here, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", here / "cache")
    out = f"training.output_dir={here / 'planned'}"
    for more, counted in (([], True), (["data.other_text=null"], False)):
        kept = [word for word in words(here, out) if counted or "other_text" not in word]
        monkeypatch.setattr(sys, "argv", ["hf-lottery", "run", *kept, *more, "--plan"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 0
        assert ("forgetting in" in capsys.readouterr().out) == counted
