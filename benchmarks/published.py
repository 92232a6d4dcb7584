"""All numbers of docs/results.md and README.md, computed from the lines in docs/results.

    python benchmarks/published.py            # write both anew
    python benchmarks/published.py --check    # exit status 1 if a number there is not what the lines say

In README.md the parts between marks are written by `readme.py`; there are no measured numbers outside of them.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import readme
from compare_runs import write_comparison
from write_results import write_page

ROOT = Path(__file__).parents[1]
LINES = ROOT / "docs" / "results"
# the page's sections in their order: a run, or a comparison of several
SECTIONS: dict[str, list[str]] = {
    "quickstart": [],
    "mnist-lenet-300-100-10000-steps": [],
    "criteria": [],
    "smollm2-lora": [],
    "cifar10-conv-2": [],
    "smollm2-updates": ["smollm2-lota-10", "smollm2-lota-1", "smollm2-lora-r184", "smollm2-lora-r18"],
    "imdb-minilm": [],
    "imdb-transformer": [],
    "imdb-minilm-30": [],
    "cifar10-resnet-20": [],
    "cifar10-vgg-16": [],
    "smollm2-rank-ticket": ["smollm2-rank"],
}
MARKS = re.compile(r"(<!-- (\w+), made by make results -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def main() -> int:
    """Parse the command line; write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    if not parser.parse_args().check:
        write_results(ROOT / "docs" / "results.md")
        path = ROOT / "README.md"
        path.write_text(with_numbers(path.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    different = list(differences())
    sys.stdout.writelines(different)
    print("numbers differ from the lines in docs/results" if different else "all numbers are what the lines say")
    return 1 if different else 0


def differences() -> Iterator[str]:
    """A unified diff of what is written and what the lines say; empty if they agree."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "results.md"
        write_results(page)
        page_now = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
        yield from _diff("docs/results.md", page_now, page.read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    yield from _diff("README.md", text, with_numbers(text))


def write_results(page: Path) -> None:
    """Write the page of results anew, with its plots in the folder of its name beside it."""
    page.unlink(missing_ok=True)
    for name, runs in SECTIONS.items():
        if runs:
            write_comparison(name, [LINES / run for run in runs], page)
        else:
            write_page([LINES / name], page)


def with_numbers(text: str) -> str:
    """README's text with the parts between marks as the lines say."""
    found = [part[1] for part in MARKS.findall(text)]
    if found != list(readme.PARTS):
        raise ValueError(f"README.md has marks for {found}; they must be for {list(readme.PARTS)}, in this order")
    return MARKS.sub(lambda part: f"{part[1]}\n{readme.PARTS[part[2]](LINES)}\n\n{part[3]}", text)


def _diff(name: str, written: str, computed: str) -> Iterator[str]:
    lines = (text.splitlines(keepends=True) for text in (written, computed))
    return difflib.unified_diff(*lines, f"{name} (written)", f"{name} (computed)", n=0)


if __name__ == "__main__":
    sys.exit(main())
