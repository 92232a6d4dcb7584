"""The harness itself: it sees every operation, finds a search that loses work, and cuts the power as a disk does."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.crash.compare import differences
from tests.crash.kills import Configuration, kill_chain, make_reference
from tests.crash.plans import Count, Fault, Kill
from tests.crash.power import PowerCut
from tests.crash.processes import TRACEBACK, run


def write_in_every_way(folder: Path) -> None:
    folder.mkdir()
    (folder / "text").write_text("text")
    (folder / "empty").touch()
    with open(folder / "bytes", "wb") as file:
        file.write(b"bytes")
        os.fsync(file)
    with open(folder / "text", "a") as file:
        print("more", file=file)
    file = os.open(folder / "fd", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"bytes")
    os.close(file)
    torch.save({"a": 1}, folder / "torch.pt")
    save_file({"a": torch.ones(2)}, folder / "a.safetensors")
    shutil.copyfile(folder / "bytes", folder / "copied")
    shutil.copytree(folder, folder / "tree", ignore=shutil.ignore_patterns("tree"))
    shutil.rmtree(folder / "tree")
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(b"temporary")
    os.replace(file.name, folder / "moved")
    (folder / "moved").rename(folder / "moved again")


def test_every_way_of_writing_is_seen_and_still_works(tmp_path):
    log = tmp_path / "log"
    folder = tmp_path / "out"
    ended = run(write_in_every_way, folder, Count(log), tmp_path / "scratch")
    assert ended.status == 0, ended.output
    seen = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = {(kind, Path(other or path).name) for _, kind, path, other in seen}
    for name in ("text", "bytes", "fd", "torch.pt", "copied"):
        assert {("open", name), ("write", name)} <= kinds
    assert {
        ("mkdir", "out"), ("open", "empty"), ("fsync", "bytes"), ("replace", "a.safetensors"), ("unlink", "copied"),
        ("rmdir", "tree"), ("replace", "moved"), ("replace", "moved again"),
    } <= kinds  # fmt: skip
    assert (folder / "text").read_text() == "textmore\n" and (folder / "moved again").read_bytes() == b"temporary"
    assert load_file(folder / "a.safetensors")["a"].sum() == 2 and torch.load(folder / "torch.pt") == {"a": 1}


@pytest.mark.parametrize(("moment", "left"), [("before", b""), ("middle", b"by"), ("after", b"bytes")])
def test_a_kill_before_in_the_middle_of_and_after_a_write(tmp_path, moment, left):
    def write(folder: Path) -> None:
        (folder / "file").write_bytes(b"bytes")

    folder = tmp_path / "out"
    folder.mkdir()
    ended = run(write, folder, Kill(2, moment, "main", False, tmp_path / "log"), tmp_path / "scratch")
    assert ended.killed and (folder / "file").read_bytes() == left
    assert (tmp_path / "log").read_text() == f"write {folder}/file\n"


def careless(folder: Path) -> None:
    """Takes a file that is there for one that is finished."""
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        if not (folder / name).exists():
            (folder / name).write_text("finished")


def careful(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        if not (folder / name).exists():
            (folder / "partial").write_text("finished")
            os.replace(folder / "partial", folder / name)


@pytest.mark.parametrize(("work", "loses"), [(careless, True), (careful, False)])
def test_a_search_that_loses_work_is_found(tmp_path, work, loses):
    configuration = Configuration(work)
    reference = make_reference(configuration, tmp_path / "reference")
    chains = [kill_chain(configuration, reference, 0, index, tmp_path / "chain") for index in range(12)]
    assert all(chain.kills for chain in chains)
    assert any(chain.different for chain in chains) == loses


def sloppy_and_safe(folder: Path) -> None:
    """Two files that replace others, one of them fsynced, with its folder; and a last operation, at which it ends."""
    for name in ("sloppy", "safe"):
        with open(folder / "partial", "wb") as file:
            file.write(b"new " + name.encode())
            if name == "safe":
                file.flush()
                os.fsync(file.fileno())
        os.replace(folder / "partial", folder / name)
        if name == "sloppy":
            continue
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    (folder / "last").mkdir()


@pytest.mark.parametrize("losses", ["all", "data"])
def test_a_power_cut_takes_bytes_that_were_not_fsynced(tmp_path, losses):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sloppy").write_bytes(b"old")
    ended = run(sloppy_and_safe, folder, PowerCut(folder, 9, losses, "", tmp_path / "log"), tmp_path / "scratch")
    assert ended.killed and (tmp_path / "log").read_text() == f"mkdir {folder}/last\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"sloppy": b"", "safe": b"new safe"}


def test_a_power_cut_takes_names_whose_folder_was_not_fsynced(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sloppy").write_bytes(b"old")
    run(sloppy_and_safe, folder, PowerCut(folder, 7, "all", "", tmp_path / "log"), tmp_path / "scratch")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"sloppy": b"old"}


@pytest.mark.parametrize("fault", ["full", "io", "short", "read-only"])
def test_a_fault_is_what_the_writer_hears_of_the_disk(tmp_path, fault):
    def write(folder: Path) -> None:
        torch.save({"a": 1}, folder / "torch.pt")

    folder = tmp_path / "out"
    folder.mkdir()
    ended = run(write, folder, Fault(2, fault, tmp_path / "log"), tmp_path / "scratch")
    assert ended.status == 1 and TRACEBACK in ended.output and "PytorchStreamWriter failed writing" in ended.output
    assert bool((folder / "torch.pt").stat().st_size) == (fault == "short")


def test_a_difference_names_file_and_value_and_times_are_none(tmp_path):
    for name, loss, seconds in (("a", 1.5, 3), ("b", 1.25, 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"eval_loss": loss, "train_seconds": seconds}))
    (tmp_path / "b" / "x.partial").touch()
    assert differences(tmp_path / "a", tmp_path / "b") == [
        "x.partial: left behind",
        "result.json: ['eval_loss'] is 1.5 and 1.25",
    ]
