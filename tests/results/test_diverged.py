"""Networks that diverged: no value, n falls, no claim that their leaving out would make, and all of it is said."""

from __future__ import annotations

import json
import math

import pytest

from hf_lottery.layout import Network
from hf_lottery.results.diverged import left_out, sentence
from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.table import caption, rows
from hf_lottery.results.verdict import NO, TOO_FEW, UNDECIDED, YES, verdict
from tests.result_lines import line, lines, write

METRICS = ("test_accuracy", "eval_loss", "test_loss", "early_stop_step", "early_stop_test_accuracy")
FOUND = {"step": 40, "tensor": "fc1.weight"}


def broken(control: str, round: int, replicate: int, sample: int = 0, **found) -> dict:
    entry = line(control, round, replicate, sample, steps=40, diverged={**FOUND, **found})
    return entry | dict.fromkeys(METRICS)


def with_broken(*gone: tuple[str, int, int], replicates: int = 5) -> Results:
    """The lines of a run in which the networks (control, round, replicate) diverged, without what stands on them."""
    networks = {Network(replicate, round, control) for control, round, replicate in gone}
    found = []
    for entry in lines(replicates):
        network = Network.of_line(entry)
        if Network(network.replicate, network.round, network.control) in networks and not network.sample:
            found.append(broken(network.control, network.round, network.replicate))
        elif network not in left_out([network], networks):
            found.append(entry)
    return Results(found)


def test_the_sentence_names_replicate_round_step_and_tensor():
    assert sentence(broken("ticket", 0, 1)) == "replicate 1 diverged at round 0, step 40 (weights of 'fc1.weight')"
    assert sentence(broken("random_reinit", 2, 0, 1, tensor=None)) == (
        "random_reinit 2 of replicate 0 diverged at round 2, step 40 (its loss)"
    )


def test_what_stands_on_a_ticket_is_left_out_and_nothing_else():
    networks = [
        Network(r, n, c) for r in (0, 1) for n in range(4) for c in ("ticket", "random_mask") if n or c == "ticket"
    ]
    gone = left_out(networks, [Network(1, 1), Network(0, 2, "random_mask")])
    assert set(gone.values()) == {Network(1, 1)}
    assert set(gone) == {n for n in networks if n.replicate == 1 and n.round > 0 and n != Network(1, 1)}


def test_lines_of_other_steps_and_of_null_are_read_and_nothing_is_called_missing(tmp_path):
    results = with_broken(("ticket", 1, 1), ("random_mask", 2, 0))
    again = read_results(write(tmp_path, [dict(entry) for entry in results.lines]))
    assert again.missing() == [] and not again.notes
    assert len(again.left_out()) == 4 + 3 + 3 * 3 + 3  # random_mask and re-initialisations of 4 rounds, 3 tickets
    assert "NaN" not in (tmp_path / "results.jsonl").read_text()


@pytest.mark.parametrize("wrong", [{}, {"step": "x"}, {"step": None}])
def test_a_line_whose_record_is_not_one_is_damaged(tmp_path, wrong):
    results = read_results(write(tmp_path, [line("ticket", 0), line("ticket", 1, diverged=wrong)]))
    assert len(results.lines) == 1 and len(results.notes) == 1


def test_means_are_over_the_others_and_say_over_how_many():
    results = with_broken(("ticket", 0, 1))
    assert list(results.values("test_accuracy", "ticket", 0)) == [0, 2, 3, 4]
    headings, body = rows(results)
    assert all(row[2].detail.endswith("n = 4 of 5") for row in body)
    assert all("n = 4 of 5" in str(row[headings.index("random_mask")]) for row in body[1:])
    assert "n = " not in str(rows(Results(lines()))[1])
    assert caption(results).endswith(
        "1 of 5 replicates diverged: replicate 1 diverged at round 0, step 40 (weights of 'fc1.weight')."
    )


def test_a_replicate_without_a_dense_network_makes_n_smaller_and_is_said_beside_the_claim():
    found = verdict(with_broken(("ticket", 0, 1)))
    assert found.replicates == 4 and {judged.matching.difference.n for judged in found.rounds} == {4}
    assert found.rounds[0].matching.answer == YES
    assert "over 4 replicates" in headline(found)
    assert headline(found).endswith(
        "1 of 5 replicates diverged: replicate 1 diverged at round 0, step 40 (weights of 'fc1.weight')."
    )
    few = verdict(with_broken(("ticket", 0, 1), replicates=3))
    assert few.rounds[0].matching.answer == TOO_FEW
    assert headline(few).startswith("Undecided: 2 replicates, and a verdict needs 3 replicates.")
    assert "1 of 3 replicates diverged" in headline(few)


def test_no_round_is_matching_or_winning_from_the_one_at_which_a_ticket_diverged():
    found = verdict(with_broken(("ticket", 2, 1)))
    assert [judged.matching.answer for judged in found.rounds] == [YES, UNDECIDED, UNDECIDED, NO]
    assert [judged.matching.on_average for judged in found.rounds] == [True, False, False, False]
    assert all(finding.answer == UNDECIDED for finding in found.rounds[1].better.values())
    assert [judged.earlier.answer for judged in found.rounds] == [YES, UNDECIDED, UNDECIDED, NO]
    assert [judged.winning for judged in found.rounds] == [YES, UNDECIDED, UNDECIDED, NO]
    assert found.extreme.round == found.winning.round == found.extreme_on_average.round == 1
    assert [judged.matching.note for judged in found.rounds] == ["", *["the ticket diverged in 1 of 5"] * 3]
    assert "At 26.2% it is undecided: 1 of 5 tickets diverged." in headline(found)
    assert "1 of 5 replicates diverged: replicate 1 diverged at round 2" in headline(found)


def test_a_ticket_that_never_lives_is_never_matching():
    found = verdict(with_broken(*[("ticket", 1, r) for r in range(5)]))
    assert [judged.matching.answer for judged in found.rounds] == [UNDECIDED]
    assert headline(found).startswith(
        "No verdict: no replicate has both a dense network and a ticket that did not diverge. 5 of 5 replicates "
        "diverged: replicate 0 diverged at round 1"
    ) and headline(found).endswith("; and 2 more.")


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
@pytest.mark.parametrize("gone", ["test_perplexity", "early_stop_test_perplexity"])
def test_a_metric_that_is_not_finite_is_the_worst_outcome(value, gone):
    """The perplexity of 2 of 5 replicates is NaN: the other three alone would match and win."""
    found = []
    for arm, number, perplexity in (
        ("ticket", 0, 20.0), ("ticket", 1, 20.0), ("random_reinit", 1, 30.0), ("random_mask", 1, 30.0)
    ):  # fmt: skip
        for r in range(5):
            entry = line(arm, number, r, metric="perplexity", greater_is_better=False)
            drawn = perplexity + 0.001 * r * (1 + number)
            entry |= {"test_perplexity": drawn, "early_stop_test_perplexity": drawn}
            if (arm, number) == ("ticket", 1) and r in (1, 3):
                entry[gone] = value
            found.append(entry)
    early_stop = gone.startswith("early")
    judged = verdict(Results(found), tolerance=0.01, early_stop=early_stop)
    assert judged.rounds[0].matching.answer == judged.rounds[0].winning == UNDECIDED
    assert not judged.rounds[0].matching.on_average and judged.extreme is None and judged.winning is None
    assert judged.rounds[0].matching.difference.n == 3
    assert "it is undecided: 2 of 5 tickets diverged." in headline(judged)
    assert headline(judged).endswith(
        f"2 networks have no finite {gone.replace('_', ' ')}, which counts as the worst outcome: "
        "replicate 1 · round 1 · ticket; replicate 3 · round 1 · ticket."
    )
    other = verdict(Results(found), tolerance=0.01, early_stop=not early_stop)
    assert other.rounds[0].winning == YES and "finite" not in headline(other)


def test_a_control_that_diverged_is_no_reason_to_call_it_as_good():
    equal = [line("ticket", n, r, test_accuracy=0.98 + r / 1e4) for n in (0, 1) for r in range(4)]
    control = [line("random_reinit", 1, r, test_accuracy=0.98 + r / 1e4) for r in range(4)]
    assert verdict(Results(equal + control)).rounds[0].better["random_reinit"].answer == NO
    control[3] = broken("random_reinit", 1, 3)
    found = verdict(Results(equal + control))
    assert found.rounds[0].better["random_reinit"].answer == UNDECIDED
    assert found.rounds[0].better["random_reinit"].note == "the other diverged in 1 of 4"
    assert found.rounds[0].matching.answer == YES and found.winning is None
    assert headline(found).endswith(
        "Undecided against random_reinit. random_mask was not run at this density, so it is not shown to be a winning "
        "ticket. 1 control network diverged: random_reinit 1 of replicate 3 diverged at round 1, step 40 (weights of "
        "'fc1.weight')."
    )
    lost = [broken("random_reinit", 1, r) for r in range(4)]
    assert verdict(Results(equal + lost)).rounds[0].better["random_reinit"].answer == UNDECIDED


def test_a_better_ticket_stays_better_than_a_control_of_which_one_diverged():
    found = verdict(with_broken(("random_mask", 1, 0)))
    assert found.rounds[0].better["random_mask"].answer == YES and found.rounds[0].winning == YES


def test_the_record_is_plain_json():
    assert json.loads(json.dumps(broken("ticket", 0, 0), allow_nan=False))["diverged"] == FOUND
