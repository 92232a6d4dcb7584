"""Files that are written whole or not at all, and what is left of a process that was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from hf_lottery.files import (
    SCRATCH,
    NotWritten,
    filling,
    make_folder,
    naming,
    replacing,
    scratch,
    sweep,
    sweep_all,
    write_state,
    write_tensors,
    write_text,
)


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "deep" / "er" / "text"
    write_text(path, "old")
    with pytest.raises(ValueError, match="stop"), replacing(path) as partial:
        partial.write_text("half of the n")
        raise ValueError("stop")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["text"]
    write_text(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["text"]


def test_an_empty_folder_in_its_place_goes_one_with_files_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    write_text(tmp_path / "empty", "text")
    assert (tmp_path / "empty").read_text() == "text"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(NotWritten, match="full could not be written: Directory not empty"):
        write_text(tmp_path / "full", "text")
    assert (tmp_path / "full" / "mine").read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk_is_one_sentence():
    with pytest.raises(OSError) as full, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert full.value.errno == errno.ENOSPC
    with (
        pytest.raises(NotWritten, match="^OUT/x could not be written: No space left on device. Finished networks are"),
        naming("OUT/x"),
    ):
        raise full.value


def test_errors_of_the_writers_in_native_code_are_the_same_sentence(tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    for write in (
        lambda path: write_tensors(path, {"a": torch.ones(2)}, {}),
        lambda path: write_state(path, {"a": 1}),
        lambda path: write_text(path, "a"),
    ):
        with pytest.raises(NotWritten, match="could not be written: .*Finished networks are safe"):
            write(blocked / "below" / "x")


def test_equal_tensors_are_equal_files(tmp_path):
    metadata = {"format": "pt", "step": "40", "version": "1", "ünïcode": "θ\\n"}
    for number in range(8):
        write_tensors(tmp_path / str(number), {"b": torch.ones(3), "a": torch.zeros(2, 2)}, metadata)
        with safe_open(tmp_path / str(number), "pt") as file:
            assert file.metadata() == metadata and file.get_tensor("b").tolist() == [1, 1, 1]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def dead_scratch(folder) -> None:
    """Leave a scratch folder of a process that was killed."""
    code = f"""
import os, signal
from hf_lottery.files import replacing
with replacing({str(folder / "x")!r}) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed_what_a_living_one_writes_is_not(tmp_path):
    dead_scratch(tmp_path / "a" / "b")
    left = list((tmp_path / "a" / "b").iterdir())
    assert len(left) == 1 and left[0].name.startswith(SCRATCH)
    with scratch(tmp_path / "a" / "b") as mine:  # sweeps first
        assert not left[0].exists()
        sweep(tmp_path / "a" / "b")
        assert mine.is_dir()
    dead_scratch(tmp_path / "a" / "b")
    sweep_all(tmp_path)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_files_of_another_machine_and_of_other_programs_are_left_alone(tmp_path):
    names = (f"{SCRATCH}00000000-1-abcd", f"{SCRATCH}whatever", ".partially", "partial")
    for name in names:
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    old = tmp_path / names[0]
    os.utime(old, (0, 0))  # a day and more
    sweep(tmp_path)
    assert not old.exists()


def test_a_folder_is_filled_with_whole_files(tmp_path):
    make_folder(tmp_path / "out")
    (tmp_path / "out" / "other").write_text("stays")
    with filling(tmp_path / "out") as new:
        (new / "a").write_text("1")
        (new / "in").mkdir()
        (new / "in" / "b").write_text("2")
        assert not (tmp_path / "out" / "a").exists()
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"a", "in/b", "other"}
    with pytest.raises(RuntimeError), filling(tmp_path / "other") as new:
        (new / "a").write_text("1")
        raise RuntimeError
    assert list((tmp_path / "other").iterdir()) == []
