"""The end of a run: the ticket is written once, and again only when it is another one."""

from __future__ import annotations

import json
from functools import partial

import pytest
from rich.console import Console

from hf_lottery import Ticket
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner import build
from hf_lottery.runner.run import run
from hf_lottery.sealed import read_sealed, write_sealed

SMALL = [
    "training.max_steps=8", "training.eval_steps=4", "lottery.num_rounds=1", "model.config.hidden_sizes=[8]",
    "training.use_cpu=true",
]  # fmt: skip


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run, and a function that runs it again, with more words."""

    def again(*words: str) -> None:
        run(load_recipe("quickstart", [*SMALL, f"training.output_dir={tmp_path}", *words]), Console(quiet=True))

    again()
    return tmp_path, again


@pytest.fixture
def no_data(monkeypatch, finished):
    def load_data(recipe):
        raise AssertionError("the data were loaded")

    monkeypatch.setattr(build, "load_data", load_data)


def files(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_finished_run_loads_neither_data_nor_model(finished, no_data):
    folder, again = finished
    before = files(folder / "ticket")
    (folder / "report" / "index.html").unlink()
    again()
    assert files(folder / "ticket") == before
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.parametrize("name", ["ticket.json", "mask.safetensors", "accuracy.png"])
def test_a_ticket_that_is_not_whole_is_written_again(finished, name):
    folder, again = finished
    whole = {name: data for name, (data, _) in files(folder / "ticket").items()}
    path = folder / "ticket" / name
    for damage in (path.unlink, partial(path.write_bytes, whole[name][:-3])):
        damage()
        again()
        assert {name: data for name, (data, _) in files(folder / "ticket").items()} == whole


def test_a_card_that_was_removed_is_written_again(finished):
    folder, again = finished
    card = folder / "ticket" / "README.md"
    whole = card.read_bytes()
    card.unlink()
    again()
    assert card.read_bytes() == whole


def test_a_ticket_of_other_results_or_another_recipe_is_written_again(finished):
    folder, again = finished
    again("hub.include_model=true")
    assert (folder / "ticket" / "model.safetensors").is_file()
    path = folder / "replicate-0" / "round-00" / "result.json"
    write_sealed(path, read_sealed(path) | {"test_accuracy": 0.125})
    again("hub.include_model=true")
    assert Ticket.from_pretrained(folder / "ticket").info["results"][0]["test_accuracy"] == 0.125


def test_every_line_names_its_metric_and_which_way_it_is_better(finished):
    folder, _ = finished
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert {(line["metric"], line["greater_is_better"]) for line in lines} == {("accuracy", True)}
