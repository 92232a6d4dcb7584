"""The support table speaks of tests that exist, and says what they said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import support_table


class Collected:
    def pytest_collection_modifyitems(self, items):
        self.names = {item.name for item in items}


def test_every_test_that_the_table_names_exists(capfd):
    collected, here = Collected(), Path(support_table.__file__).parent
    files = [str(here / name) for name in support_table.FILES]
    assert pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *files], plugins=[collected]) == 0
    named = set(support_table.WRAPPERS.values())
    for setup in support_table.LAUNCHERS:
        named |= {test.format(setup) for test in support_table.INVARIANTS.values()}
    assert named <= collected.names


def test_the_table_is_written_between_its_marks(tmp_path, monkeypatch):
    readme, report = tmp_path / "README.md", tmp_path / "report.xml"
    monkeypatch.setattr(support_table, "README", readme)
    readme.write_text(f"before\n{support_table.BEGIN}old\n{support_table.END}after\n")
    report.write_text(
        "<testsuite>"
        '<testcase name="test_the_ticket_is_that_of_one_process[ddp]"/>'
        '<testcase name="test_torch_compile"><failure/></testcase>'
        '<testcase name="test_8_bit_adamw"><skipped/></testcase>'
        "</testsuite>"
    )
    support_table.main(str(report))
    text = readme.read_text()
    assert text.startswith(f"before\n{support_table.BEGIN}") and text.endswith(f"{support_table.END}after\n")
    assert "| DDP | yes | not run |" in text and "| FSDP2 | not run |" in text and "old" not in text
    assert "| torch.compile | no |" in text and "| 8-bit AdamW | not run |" in text


def test_the_readme_has_the_marks():
    text = support_table.README.read_text(encoding="utf-8")
    assert text.count(support_table.BEGIN) == text.count(support_table.END) == 1
