import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_lottery.report.report import write_report
from tests.result_lines import line, lines, write, write_folder

PLOTS = [
    "accuracy", "early-stop-step", "early-stop-accuracy", "learning-curves", "learning-curves-controls",
    "density-per-layer", "mask-overlap",
]  # fmt: skip

VOID = {"meta", "link"}  # the page's tags that are never closed


class Page(HTMLParser):
    """Headings, text, ids and tags of a page; fails on tags that are closed out of order."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text = [], [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of five replicates of which one network has not finished."""
    folder = tmp_path_factory.mktemp("output")
    found = [e for e in lines() if (e["replicate"], e["round"], e["control"]) != (4, 4, "random_mask")]
    return write_report(write_folder(folder, found))


def test_the_page_has_plots_tables_and_verdict_and_needs_nothing_else(report):
    page = Page(report)
    assert [name.removeprefix("plot-") for name in page.ids if name.startswith("plot-")] == PLOTS
    assert page.tags.count("svg") == len(PLOTS)
    assert page.tags.count("table") == 4
    assert "verdict" in page.ids
    assert "Matching down to 13.7% density (round 3): test accuracy within 0.20 points of dense" in page.text
    assert not {"script", "img", "iframe", "object"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert sources and all(value.startswith(("#", "data:,")) for value in sources)
    assert len(page.ids) == len(set(page.ids))


def test_every_reference_inside_the_page_is_to_something_there(report):
    text = report.read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= ids


def test_the_page_says_what_is_missing(report):
    text = Page(report).text
    assert "1 network has not finished: replicate 4 · round 4 · random mask." in text


def test_the_plots_and_the_markdown_lie_beside_it(report):
    found = {path.name for path in (report.parent / "plots").iterdir()}
    assert found == {f"{name}.{ending}" for name in PLOTS for ending in ("png", "svg")}
    text = (report.parent / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((.+?)\)", text)
    assert linked == [f"plots/{name}.png" for name in PLOTS]
    assert "**Matching down to 13.7% density" in text
    assert "| 0 (dense) | 100% | 98.02% (97.94–98.12) |" in text
    widths = [row.count("|") for row in text.splitlines() if row.startswith("|")]
    assert set(widths) == {8, 5}


def test_the_verdict_table_gives_answer_difference_interval_and_count(report):
    text = (report.parent / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\| 7\.12% \| no \(−2\.00 points \[−2\.\d\d, −1\.\d\d\], n = 5\) \|", text)
    assert "| yes | yes (+400 steps [+276, +524], n = 5) | 1.62× |" in text
    assert "no difference (0 steps [−124, +124], n = 5) | 1.00× |" in text


def test_a_torn_line_and_an_unreadable_recipe_are_said(tmp_path):
    folder = write(tmp_path, lines(1), '{"replicate": 0, "control": "random_m')
    (folder / "recipe.yaml").write_text("a: [")
    text = Page(write_report(folder)).text
    assert "results.jsonl is incomplete" in text
    assert "recipe.yaml cannot be read" in text
    assert "Undecided: 1 replicate, and a verdict needs 3 replicates." in text


def test_the_dense_network_alone_makes_a_report(tmp_path):
    text = Page(write_report(write(tmp_path, [line("ticket", 0)]))).text
    assert "Nothing to judge yet" in text
    assert "The folder has no recipe.yaml" in text


def test_names_from_the_recipe_are_escaped(tmp_path):
    folder = write(tmp_path, lines(1))
    (folder / "recipe.yaml").write_text("model: {name_or_path: '<script>alert(1)</script>'}\n")
    assert "script" not in Page(write_report(folder)).tags


def test_a_report_before_anything_finished_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing has finished there"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prunable": 99}, "prunable is 1250 in replicate 0 .*, and 99 in replicate 1 "),
        ({"steps": 5}, "steps is 2000"),
    ],
)
def test_replicates_of_two_recipes_are_refused(tmp_path, change, message):
    folder = write(tmp_path, [line("ticket", 0, 0), line("ticket", 0, 1, **change)])
    with pytest.raises(ValueError, match=f"not of one recipe: {message}"):
        write_report(folder)


def test_replicates_that_share_a_seed_are_named(tmp_path):
    folder = write(tmp_path, [line("ticket", 0, r, seed=7) for r in range(2)])
    assert "Replicates 0, 1 share seed 7: one observation, not several." in Page(write_report(folder)).text


def test_perplexity_is_shown_as_it_is(tmp_path):
    found = []
    for entry in lines(3, controls=()):
        accuracy = entry.pop("test_accuracy")
        del entry["early_stop_test_accuracy"]
        found.append(entry | {"test_perplexity": 20 / accuracy, "early_stop_test_perplexity": 21 / accuracy})
    text = Page(write_report(write(tmp_path, found))).text
    assert "Test perplexity against density" in text
    assert "20.4" in text and "points" not in text.split("How it was judged")[0]


def test_the_answers_are_those_of_the_replicate_that_is_named(tmp_path):
    """The first replicate diverged, so the ticket is that of the next one, and so are the answers."""
    gone = {"steps": 40, "diverged": {"step": 40, "tensor": "fc1.weight"}, "test_accuracy": None}
    found = [entry | gone if (entry["replicate"], entry["control"]) == (0, "ticket") else entry for entry in lines()]
    folder = write_folder(tmp_path, found)
    for replicate in (0, 1):
        record = {"prompt": "Who?", "before": "…", "after": f"answer of replicate {replicate}"}
        (folder / f"replicate-{replicate}" / "round-01" / "generations.json").write_text(json.dumps([record]))
    text = Page(write_report(folder)).text
    assert "each training of replicate 1" in text
    assert "answer of replicate 1" in text and "answer of replicate 0" not in text


def test_answers_to_fixed_prompts_stand_side_by_side(tmp_path):
    folder = write_folder(tmp_path, lines())
    record = {"prompt": "What is 2 | 3?", "before": "It is (surely)\n<b>5</b>", "after": "x" * 400}
    path = folder / "replicate-0" / "round-01"
    path.mkdir(parents=True, exist_ok=True)
    (path / "generations.json").write_text(json.dumps([record]))
    page = Page(write_report(folder))
    assert "Answers before and after" in page.text
    assert "It is (surely) <b>5</b>" in page.text
    assert "x" * 299 + "…" in page.text
