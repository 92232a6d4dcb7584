"""Forgetting in tables: means and intervals over replicates, and what is said where some have none."""

import io

import pytest
import rich.console

from hf_lottery.finished import odd_value
from hf_lottery.report.forgetting import forgetting
from hf_lottery.results.forgetting import AFTER, BEFORE, FORGETTING, explained
from hf_lottery.results.results import Results
from hf_lottery.results.table import caption, rows
from hf_lottery.results.terminal import table
from hf_lottery.results.values import value_of
from tests.result_lines import lines

RISES = {0: [0.05, 0.07, 0.06], 1: [0.010, 0.004, 0.001], 2: [-0.001, 0.0, 0.001]}  # round -> of each replicate
ABOUT = {"other_text": "Salesforce/wikitext, wikitext-2-raw-v1", "other_text_tokens": 8192}


def measured(replicates: int = 3, **values) -> list[dict]:
    found = [
        {**line, BEFORE: 3.0, AFTER: 3.0 + RISES[line["round"]][line["replicate"]], **ABOUT, **values}
        for line in lines(replicates, rounds=3)
    ]
    return [{**line, AFTER: line[AFTER] + 0.1} if line["control"] == "random_mask" else line for line in found]


def column(found: list[dict], heading: str = FORGETTING) -> list[str]:
    headings, body = rows(Results(found))
    return [str(row[headings.index(heading)]) for row in body]


def test_it_is_after_minus_before_over_replicates():
    results = Results(measured())
    assert results.values(FORGETTING, "ticket", 1) == pytest.approx({0: 0.010, 1: 0.004, 2: 0.001})
    assert results.values(FORGETTING, "random_reinit", 1) == pytest.approx({0: 0.010, 1: 0.004, 2: 0.001})
    assert column(results.lines) == [
        "+0.060 (+0.050 to +0.070)",
        "+0.005 (+0.001 to +0.010)",
        "+0.000 (−0.001 to +0.001)",
    ]


def test_one_replicate_has_no_range():
    assert column(measured(1)) == ["+0.050", "+0.010", "−0.001"]
    (section,) = forgetting(Results(measured(1)))
    assert [str(row[3]) for row in section.table[1]] == ["+0.050", "+0.010", "−0.001"]
    assert "interval" not in section.sentences[0]


def test_the_report_has_losses_intervals_and_controls():
    (section,) = forgetting(Results(measured()))
    headings, body = section.table
    assert headings == ["density", "loss before", "loss after", FORGETTING, "random reinit", "random mask"]
    assert [str(cell) for cell in body[0]] == [
        *("100% (dense)", "3 (3–3)", "3.06 (3.05–3.07)"),
        *("+0.060 [+0.035, +0.085]", "–", "–"),  # 0.06 ± 4.303 · 0.01 / √3
    ]
    assert str(body[1][5]).startswith("+0.105 [+0.094")


def test_without_it_there_is_no_column_and_no_section():
    found = lines(3, rounds=3)
    assert FORGETTING not in rows(Results(found))[0]
    assert forgetting(Results(found)) == [] and "orgetting" not in caption(Results(found))


@pytest.mark.parametrize("loss", [None, {"diverged": {"step": 3, "tensor": None}, AFTER: None}])
def test_a_replicate_without_a_loss_is_said(loss):
    found = measured()
    for index, line in enumerate(found):
        if (line["control"], line["round"], line["replicate"]) == ("ticket", 1, 2):
            found[index] = {**line, **(loss or {AFTER: None})}
    assert column(found)[1] == "+0.007 (+0.004 to +0.010, n = 2 of 3)"
    assert "n = 2 of 3" in str(forgetting(Results(found))[0].table[1][1][3])


def test_lines_of_a_diverged_or_an_unmeasured_network_have_none():
    line = measured(1)[0]
    assert value_of(line, FORGETTING) == pytest.approx(0.05)
    assert value_of({**line, "diverged": {"step": 1, "tensor": None}}, FORGETTING) is None
    assert value_of({key: value for key, value in line.items() if key != BEFORE}, FORGETTING) is None
    assert odd_value({**line, AFTER: "3"}) == AFTER and odd_value(line) is None


def test_the_caption_says_what_was_measured_on_what():
    said = caption(Results(measured()))
    assert "rise of the loss, in nats a token, on text that the task does not hold: 8,192 tokens of Sal" in said
    in_a_ticket = [{key: value for key, value in line.items() if key != "other_text"} for line in measured()]
    assert "does not hold: 8,192 tokens, from the pretrained model" in explained(in_a_ticket)


def test_the_terminal_table_is_whole_in_80_columns():
    of = {"metric": "perplexity", "greater_is_better": False, "test_perplexity": 23.456}
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(table(Results(measured(**of))))
    text = console.file.getvalue()
    for cell in ("forgetting", "+0.060", "+0.050 to", "1,000–1,100", "23.46–23.46", "random mask"):
        assert cell in text
