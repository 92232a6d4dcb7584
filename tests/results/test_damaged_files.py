"""A run's folder with damaged files: what reports say of it, and where the networks' own folders are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_lottery.layout import Network
from hf_lottery.mask import MASK_FILE
from hf_lottery.report.report import write_report
from hf_lottery.results.results import read_results
from hf_lottery.sealed import FILES, file_records, write_sealed
from tests import result_lines


@pytest.fixture
def folder(tmp_path):
    """An output folder of two replicates, each network with its result.json."""
    lines = result_lines.lines(replicates=2, rounds=3)
    root = result_lines.write_folder(tmp_path / "out", lines)
    for line in lines:
        network = Network.of_line(line).folder(root)
        files = file_records(network, (MASK_FILE, "trainer_state.json"))
        write_sealed(network / "result.json", {**line, FILES: files})
    return root


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_lines_and_folders_that_agree_need_no_note(folder):
    results = read_results(folder)
    assert results.notes == [] and results.lines == sorted(results.lines, key=Network.of_line)
    assert [dict(line) for line in results.lines] == sorted(result_lines.lines(2, 3), key=Network.of_line)


def test_a_line_that_was_changed_is_put_right_by_the_networks_own_folder(folder):
    path = folder / "results.jsonl"
    text = path.read_text()
    lines = text.splitlines()
    changed = json.loads(lines[0]) | {"test_accuracy": 0.5}
    path.write_text("\n".join([json.dumps(changed), *lines[1:-1]]) + "\n")
    results = read_results(folder)
    assert [dict(line) for line in results.lines] == sorted(map(json.loads, lines), key=Network.of_line)
    assert len(results.notes) == 2 and "lists another result of" in results.notes[0] + results.notes[1]
    assert "does not list" in results.notes[0] + results.notes[1]
    path.unlink()
    assert len(read_results(folder).lines) == len(lines)


def test_a_damaged_result_is_named_and_the_listed_one_is_taken(folder):
    flipped(folder / "replicate-1" / "round-02" / "result.json")
    results = read_results(folder)
    assert len(results.notes) == 1 and "replicate-1/round-02/result.json is damaged" in results.notes[0]
    assert len(results.lines) == len(result_lines.lines(2, 3))


def test_a_result_in_the_folder_of_another_network_is_not_taken(folder):
    one, other = (folder / "replicate-0" / name / "result.json" for name in ("round-01", "round-02"))
    other.write_bytes(one.read_bytes())
    results = read_results(folder)
    note = "round-02/result.json is damaged: it is the result of another network, replicate 0 · round 1"
    assert any(note in found for found in results.notes)


@pytest.mark.parametrize("name", ["mask.safetensors", "trainer_state.json"])
def test_a_report_names_the_files_that_it_leaves_out(folder, name):
    write_report(folder)
    assert "is damaged" not in (folder / "report" / "report.md").read_text()
    flipped(folder / "replicate-0" / "round-01" / name)
    write_report(folder)
    assert f"replicate-0/round-01/{name} is damaged" in (folder / "report" / "report.md").read_text()
    (folder / "replicate-0" / "round-01" / name).unlink()
    write_report(folder)
    assert "it is missing" in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize("odd", [{"test_accuracy": "x"}, {"early_stop_step": [1]}, {"density": None}, {"steps": True}])
def test_values_that_are_no_numbers_are_not_taken(folder, odd):
    path = folder / "replicate-1" / "round-02" / "result.json"
    line = result_lines.line("ticket", 2, 1) | odd
    path.write_text(json.dumps(line))  # as an earlier version wrote it, without a checksum
    text = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(text + json.dumps(line) + "\n")
    results = read_results(folder)
    assert any("replicate-1/round-02/result.json is damaged" in note for note in results.notes)
    assert any(f"Line {len(text.splitlines()) + 1} of results.jsonl" in note for note in results.notes)
    assert [dict(line) for line in results.lines] == sorted(result_lines.lines(2, 3), key=Network.of_line)
