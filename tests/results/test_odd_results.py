"""The verdict of results that nobody plans: unfinished, with odd values, partly diverged."""

import json
import resource

import pytest

from hf_lottery.report.judgement import judgement
from hf_lottery.results.finding import NO, NO_DIFFERENCE, UNDECIDED, YES
from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.verdict import verdict
from tests.result_lines import line, lines, write


def test_the_grid_of_test_examples_is_not_that_of_early_stop_steps():
    found = verdict(Results([entry | {"test_examples": 500} for entry in lines()]))
    assert found.steps_resolution == verdict(Results(lines())).steps_resolution == 100
    assert found.rounds[2].earlier.answer == NO_DIFFERENCE


def test_an_unfinished_run_says_how_many_replicates_have_a_ticket():
    found = verdict(Results([line("ticket", 0, r) for r in range(5)] + [line("ticket", 1, r) for r in range(2)]))
    said = "Undecided: 2 of 5 replicates have a ticket beside the dense network, and a verdict needs 3 replicates."
    assert headline(found).startswith(said) and judgement(found)[0].sentences == [said]


def test_without_early_stop_values_the_dense_network_is_not_called_unfinished():
    found = [
        {key: value for key, value in entry.items() if not key.startswith("early_stop")}
        | {"metric": "accuracy", "greater_is_better": True}
        for entry in lines()
    ]
    said = "Nothing to compare with: no finished dense network (round 0) has a test accuracy at the early-stop step."
    judged = verdict(Results(found), early_stop=True)
    assert headline(judged) == said and judgement(judged)[0].sentences == [said]


def test_a_control_of_which_one_sample_diverged_is_counted_once():
    found = lines(5, 2)
    gone = {"replicate": 1, "control": "random_reinit", "sample": 2}
    found = [
        entry | {"diverged": {"step": 3, "tensor": None}} if gone.items() <= entry.items() else entry
        for entry in found
    ]
    finding = verdict(Results(found)).rounds[0].better["random_reinit"]
    assert finding.difference.n == finding.comparison.count == 5
    assert finding.note.startswith("the other diverged in 1 of 5")


def test_the_tolerance_of_a_negative_loss_is_not_negative():
    found = [
        line("ticket", round, r, metric="loss", greater_is_better=False, test_loss=-2 - 0.0001 * r * round)
        for round in (0, 1)
        for r in range(5)
    ]
    judged = verdict(Results(found))
    assert judged.tolerance == pytest.approx(0.004) and judged.rounds[0].matching.answer == YES


def test_an_accuracy_of_0_everywhere_shows_nothing():
    found = verdict(Results([line("ticket", round, r, test_accuracy=0.0) for round in (0, 1) for r in range(5)]))
    assert found.rounds[0].matching.answer == UNDECIDED


@pytest.mark.parametrize("key", ["looks", "test_examples"])
@pytest.mark.parametrize("value", [0, -3, 10**19, 10**400, True, 1.5, None])
def test_a_count_that_is_none_is_left_out(key, value):
    found = verdict(Results([entry | {key: value} for entry in lines()]))
    assert headline(found) == headline(verdict(Results(lines())))


@pytest.mark.parametrize("odd", [{"replicate": "0"}, {"round": "1"}, {"round": 1.0}, {"sample": "0"}, {"control": 3}])
def test_a_line_whose_network_is_of_another_type_is_skipped(tmp_path, odd):
    found = lines(3, 2)
    with (write(tmp_path, found) / "results.jsonl").open("a") as file:
        file.write(json.dumps(found[0] | odd) + "\n" + json.dumps(found[-1]) + "\n")
    results = read_results(tmp_path)
    assert len(results.lines) == len(found) and "not the result of a network" in results.notes[0]


def test_three_yes_answers_that_do_not_make_a_winning_ticket_are_explained():
    found = [line("ticket", 0, r, test_accuracy=0.98) for r in range(5)]
    for round, accuracy in ((1, 0.9792), (2, 0.95), (3, 0.95), (4, 0.95)):
        for r in range(5):
            # at round 1, t = (−0.08 + 0.20 points) / 0.035 points: p = 0.014, and the joint test of four takes 0.006
            found.append(line("ticket", round, r, test_accuracy=accuracy + 0.0005 * (r - 2)))
            found += [line(name, round, r, test_accuracy=0.9) for name in ("random_reinit", "random_mask")]
    judged = verdict(Results(found))
    first = judged.rounds[0]
    assert [first.matching.answer, *(one.answer for one in first.better.values())] == [YES, YES, YES]
    assert first.winning == UNDECIDED
    assert "each of the three answers is yes, but that all three hold together is undecided" in headline(judged)


def test_replicates_are_not_added_where_a_ticket_diverged():
    found = [
        entry | ({"diverged": {"step": 3, "tensor": None}} if (entry["round"], entry["replicate"]) == (1, 0) else {})
        for entry in lines(5, 2)
        if (entry["control"], entry["replicate"]) == ("ticket", 0) or entry["replicate"]
    ]
    assert verdict(Results(found)).winning is None and verdict(Results(found)).decided


def test_no_winning_ticket_has_three_reasons_which_share_the_error_rate():
    # t = (0.20 − 0.0975 points) / 0.035 points = 2.9: p = 0.022 is enough for no at 2.5%, and not at 1.875%
    found = [line("ticket", round, r, test_accuracy=0.98 + 0.0005 * (r - 2)) for round in (0, 1) for r in range(5)]
    for name in ("random_reinit", "random_mask", "no_rewinding"):
        found += [line("random_mask", 1, r, test_accuracy=0.979025) | {"control": name, "sample": 0} for r in range(5)]
    judged = verdict(Results(found)).rounds[0]
    assert [one.answer for one in judged.better.values()] == [UNDECIDED, UNDECIDED, NO] and judged.winning == UNDECIDED


def test_a_round_that_nobody_can_count_to_costs_no_memory():
    found = [line("ticket", n, r) | {"round": 1 << 40 if n else 0} for n in (0, 1) for r in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [judged.round for judged in verdict(Results(found)).rounds] == [1 << 40]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # KiB
