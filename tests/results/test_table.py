import io

import rich.console

from hf_lottery.results.results import Results
from hf_lottery.results.table import rows
from hf_lottery.results.terminal import table
from tests.result_lines import lines


def printed(found) -> str:
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(table(Results(found)))
    return console.file.getvalue()


def test_a_row_a_round_with_the_controls_beside_it():
    headings, body = rows(Results(lines(1)))
    assert headings == [
        "round", "density", "test accuracy", "early-stop step", "test accuracy there", "random_reinit", "random_mask",
    ]  # fmt: skip
    body = [[str(cell) for cell in row] for row in body]
    assert body[0] == ["0 (dense)", "100%", "98.00%", "1,000", "97.90%", "–", "–"]
    # re-initialised: 0.979 + 0.0002 · (0, 1, 2) + 0.0001 · (3, 4, 0), averaged
    assert body[1] == ["1", "51.0%", "98.23%", "800", "98.13%", "97.94%", "97.83%"]


def test_the_terminal_table_is_whole_in_80_columns():
    text = printed(lines(5))
    assert "…" not in text
    for cell in ("0 (dense)", "98.02%", "97.94–98.12", "1,000–1,100", "random mask", "90.02%", "over 5 replicates"):
        assert cell in " ".join(text.split())
    assert "1 replicate." in printed(lines(1))


def test_a_control_without_a_round_shows_a_dash():
    found = [entry for entry in lines(1) if not (entry["control"] == "random_mask" and entry["round"] == 3)]
    _, body = rows(Results(found))
    assert str(body[3][-1]) == "–"
