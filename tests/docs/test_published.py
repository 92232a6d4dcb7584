"""Every measured number of README.md and docs/results.md is what the committed lines say."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("published")


def test_all_numbers_are_what_the_lines_say(published):
    assert "".join(published.differences()) == ""


def test_a_changed_number_is_found(published, monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    text = (published.ROOT / "docs" / "results.md").read_text()
    assert "| 97.73% (97.32–97.99) |" in text
    (tmp_path / "docs" / "results.md").write_text(
        text.replace("| 97.73% (97.32–97.99) |", "| 97.74% (97.32–97.99) |", 1)
    )
    readme = (published.ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme.replace("5.072", "5.071", 1))
    monkeypatch.setattr(published, "ROOT", tmp_path)
    found = "".join(published.differences())
    assert found.count("\n-|") == found.count("\n+|") == 2
    assert "97.74%" in found and "5.071" in found


def test_marks_that_are_missing_are_said(published):
    with pytest.raises(ValueError, match="README.md has marks for \\[\\]; they must be for"):
        published.with_numbers("# hf_lottery\n")
