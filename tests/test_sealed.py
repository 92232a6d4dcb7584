"""Checksums: every change of a file is noticed, and changes that mean nothing are not."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lottery.sealed import (
    DamagedFile,
    checksum,
    file_record,
    read_sealed,
    read_sealed_text,
    require_whole,
    require_whole_folder,
    seal_folder,
    write_sealed,
    write_sealed_text,
)

DOCUMENT = {
    "round": 3,
    "test_accuracy": 0.1 + 0.2,
    "densities": {"a": [1, 2]},
    "files": {"x": {"bytes": 1}},
    "n": None,
}


def test_a_document_comes_back(tmp_path):
    write_sealed(tmp_path / "a.json", DOCUMENT)
    assert read_sealed(tmp_path / "a.json") == DOCUMENT
    text = json.dumps(json.loads((tmp_path / "a.json").read_text()), indent=7)  # another layout, the same contents
    (tmp_path / "a.json").write_text(text)
    assert read_sealed(tmp_path / "a.json") == DOCUMENT


def test_no_byte_of_a_document_can_change(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, DOCUMENT)
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                assert read_sealed(path) == DOCUMENT  # white space
            except DamagedFile as damage:
                assert damage.path == path and str(path) in str(damage)


def test_no_part_of_a_document_can_be_missing(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, DOCUMENT)
    data = path.read_bytes()
    for length in range(len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFile):
            read_sealed(path)


@pytest.mark.parametrize("text", ["", " \n", "[1, 2]", "3", "null", "{", '"x"', "\xff", "[" * 100_000])
def test_what_is_no_document(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFile):
        read_sealed(tmp_path / "a.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DamagedFile, match="it is a folder"):
        read_sealed(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "none")


def test_a_document_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"round": 1}')
    assert read_sealed(tmp_path / "a.json") == {"round": 1}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_a_checksum_does_not_depend_on_the_layout(value):
    document = {"b": value, "a": 1}
    assert checksum(document) == checksum(json.loads(json.dumps({"a": 1, "b": value}, indent=3)))


def test_text_for_people(tmp_path):
    path = tmp_path / "recipe.yaml"
    write_sealed_text(path, "# what it is\nmodel: {}\n")
    assert read_sealed_text(path) == "# what it is\nmodel: {}\n"
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-1], b"", data.replace(b"model", b"mode1"), data + b"#\n"):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile):
            read_sealed_text(path)
    path.write_text("model: {}\n")  # of an earlier version
    assert read_sealed_text(path) == "model: {}\n"


def test_a_file_and_its_record(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"123")
    record = file_record(path)
    require_whole(path, record)
    for data, why in ((b"12", "3 were written"), (b"124", "have changed"), (None, "missing")):
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(DamagedFile, match=why):
            require_whole(path, record)
    path.mkdir()
    with pytest.raises(DamagedFile, match="it is a folder"):
        require_whole(path, record)


def test_a_folder_and_its_manifest(tmp_path):
    folder = tmp_path / "checkpoint-3"
    (folder / "in").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "in" / "b").write_text("b")
    with pytest.raises(DamagedFile, match=r"no manifest\.json"):
        require_whole_folder(folder)
    seal_folder(folder, {"step": 3})
    assert require_whole_folder(folder) == {"step": 3}
    (folder / "more").write_text("what others add is theirs")
    assert require_whole_folder(folder) == {"step": 3}
    (folder / "in" / "b").write_text("c")
    with pytest.raises(DamagedFile, match="in/b is damaged"):
        require_whole_folder(folder)


def test_a_damage_is_sent_between_processes(tmp_path):
    damage = pickle.loads(pickle.dumps(DamagedFile(tmp_path / "x", "it is missing")))
    assert damage.path == tmp_path / "x" and str(damage).endswith("x is damaged: it is missing")
