"""The learning rate of each control and round is chosen by validation: against numpy, and never by test values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lottery.layout import Network
from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.table import caption, rows
from hf_lottery.results.verdict import YES, verdict
from tests.result_lines import line, write

OWN, RATES = 0.001, (0.001, 0.003, 0.01)
GONE = {"diverged": {"step": 40, "tensor": None}, "eval_accuracy": None, "test_accuracy": None, "eval_loss": None}


def at(rate: float, control: str = "random_mask", round: int = 1, replicate: int = 0, **values) -> dict:
    values = {"learning_rate": rate, "recipe_learning_rate": OWN, "eval_accuracy": 0.9, **values}
    named = {"control": control, "metric": "accuracy", "greater_is_better": True}
    return line("random_mask" if control == "no_rewinding" else control, round, replicate) | named | values


def of(values: dict[float, list[float]], key: str = "eval_accuracy", **more) -> list[dict]:
    """A control's lines: rate -> the value of each replicate."""
    return [
        at(rate, replicate=replicate, **{key: value}, **more)
        for rate, found in values.items()
        for replicate, value in enumerate(found)
    ]


def chosen(lines: list[dict], control: str = "random_mask", round: int = 1) -> float:
    return Results(lines).choices[control, round].rate


def test_the_best_mean_at_validation_is_taken_and_the_others_are_gone():
    results = Results(of({0.001: [0.91, 0.92], 0.003: [0.90, 0.95], 0.01: [0.96, 0.80]}))
    assert {entry["learning_rate"] for entry in results.lines} == {0.003} and len(results.lines) == 2
    assert len(results.trained) == 6 and results.learning_rate("random_mask", 1) == 0.003
    means = {one.rate: one.mean for one in results.choices["random_mask", 1].tried}
    assert means == pytest.approx({0.001: 0.915, 0.003: 0.925, 0.01: 0.88})


def test_each_control_and_round_has_its_own():
    lines = [at(rate, round=1, eval_accuracy=value) for rate, value in ((0.001, 0.9), (0.01, 0.8))]
    lines += [at(rate, round=2, eval_accuracy=value) for rate, value in ((0.001, 0.8), (0.01, 0.9))]
    lines += [at(rate, "ticket", eval_accuracy=value) for rate, value in ((0.001, 0.8), (0.003, 0.9))]
    results = Results(lines)
    assert [results.learning_rate(*group) for group in (("random_mask", 1), ("random_mask", 2), ("ticket", 1))] == [
        0.001, 0.01, 0.003,
    ]  # fmt: skip


def test_of_a_loss_or_perplexity_the_lowest_is_taken():
    lines = of({0.001: [3.1, 3.3], 0.003: [2.9, 3.0]}, "eval_perplexity", metric="perplexity", greater_is_better=False)
    assert chosen(lines) == 0.003


def test_a_metric_that_was_not_measured_at_validation_leaves_the_loss():
    lines = of({0.001: [0.4, 0.5], 0.003: [0.3, 0.4], 0.01: [0.6, 0.7]}, "eval_loss", eval_accuracy=None)
    assert chosen(lines) == 0.003 and Results(lines).choices["random_mask", 1].measure == "validation loss"


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        ({0.01: [0.9], 0.003: [0.9], 0.001: [0.9]}, 0.001),  # the recipe's own
        ({0.01: [0.9], 0.003: [0.9], 0.001: [0.8]}, 0.003),  # then the smaller
        ({0.01: [0.1 + 0.2], 0.003: [0.3], 0.001: [0.1]}, 0.003),  # equal but for rounding
        ({0.0001: [0.9], 0.001: [0.9]}, 0.001),
    ],
)
def test_ties_go_to_the_recipes_own_rate_then_to_the_smaller(values, taken):
    assert chosen(of(values)) == taken


def test_a_rate_with_a_network_that_diverged_comes_after_those_without():
    lines = of({0.001: [0.5, 0.5], 0.01: [0.99, 0.99, 0.99]}) + [at(0.001, replicate=2, eval_accuracy=0.5)]
    assert chosen(lines) == 0.01
    lines[4] |= GONE
    assert chosen(lines) == 0.001


def test_where_every_rate_lost_one_the_means_are_over_what_they_share():
    lines = of({0.001: [0.9, 0.2, 0.7], 0.01: [0.8, 0.95, 0.95]})
    lines[1] |= GONE
    lines[5] |= GONE
    assert chosen(lines) == 0.001  # 0.9 against 0.8, of replicate 0 alone
    assert [(one.count, one.lost) for one in Results(lines).choices["random_mask", 1].tried] == [(1, 1), (1, 1)]


def test_a_chain_that_broke_off_counts_as_lost_and_not_as_unfinished():
    lines = [
        at(rate, "no_rewinding", number, replicate, chain=number, eval_accuracy=value)
        for rate, value in ((0.001, 0.6), (0.01, 0.9))
        for number in (1, 2)
        for replicate in (0, 1)
    ]
    lines[6] |= GONE  # at 0.01 round 2 of replicate 0
    assert chosen(lines, "no_rewinding", 2) == 0.001
    first = next(entry for entry in lines if entry["learning_rate"] == 0.01 and entry["round"] == 1)
    first |= GONE
    lines.remove(lines[6])  # so it was left out
    choice = Results(lines).choices["no_rewinding", 2]
    assert choice.rate == 0.001 and [(one.lost, one.unfinished) for one in choice.tried] == [(0, 0), (1, 0)]
    assert not read_notes(lines)


def read_notes(lines: list[dict]) -> list[str]:
    from hf_lottery.results.tuned import choices, unfinished_notes

    return unfinished_notes(choices(lines, Results(lines).metric))


def test_rates_that_are_not_finished_are_not_chosen_and_it_is_said(tmp_path):
    lines = of({0.001: [0.5, 0.5], 0.003: [0.6, 0.6], 0.01: [0.99]})
    results = read_results(write(tmp_path, lines))
    assert results.learning_rate("random_mask", 1) == 0.003
    assert results.notes == [
        "Not all networks of random_mask at round 1 have finished: its learning rate there is chosen among the others "
        "for now."
    ]
    assert results.missing() == [Network(1, 1, "random_mask", 0, 0.01)]


def test_where_no_rate_is_finished_those_with_the_most_networks_are_compared():
    lines = [at(0.001, replicate=0, eval_accuracy=0.5), at(0.01, replicate=1, eval_accuracy=0.9)]
    assert chosen(lines) == 0.001  # nothing in common: the recipe's own


def tuned(test: dict[float, float], validation: dict[float, float], replicates: int = 5) -> list[dict]:
    """Dense and ticket of round 1 at three rates, under both controls at one."""
    found = []
    for replicate in range(replicates):
        for control, number in (("ticket", 0), ("ticket", 1), ("random_reinit", 1), ("random_mask", 1)):
            for rate in RATES if control == "ticket" else (OWN,):
                entry = at(rate, control, number, replicate)
                jitter = entry["test_accuracy"] if control != "ticket" else test[rate] + 0.0003 * ((replicate * 7) % 5)
                entry |= {"test_accuracy": jitter, "early_stop_test_accuracy": jitter}
                found.append(entry | {"eval_accuracy": validation[rate]})
    return found


def test_the_verdict_sees_one_network_for_each_replicate_and_control():
    validation = {0.001: 0.5, 0.003: 0.9, 0.01: 0.6}
    good = tuned({0.001: 0.1, 0.003: 0.99, 0.01: 0.2}, validation)
    for early_stop in (False, True):
        found = verdict(Results(good), early_stop=early_stop)
        assert found.rounds[0].winning == YES and found.rounds[0].matching.difference.n == 5
    alone = [entry for entry in good if entry["control"] != "ticket" or entry["learning_rate"] == 0.003]
    plain = [{k: v for k, v in entry.items() if not k.endswith("learning_rate")} for entry in alone]
    assert headline(verdict(Results(good))) == headline(verdict(Results(plain)))


def test_a_ticket_that_diverged_at_the_recipes_rate_is_lost_at_every_rate():
    lines = tuned(dict.fromkeys(RATES, 0.99), {0.001: 0.5, 0.003: 0.9, 0.01: 0.6})
    lines = [
        n for n in lines if n["replicate"] or not n["round"] or (n["control"], n["learning_rate"]) == ("ticket", OWN)
    ]
    lost = next(n for n in lines if n["replicate"] == 0 and n["round"] == 1)
    lost |= GONE | {"steps": 40}
    results = Results(lines)
    assert results.learning_rate("ticket", 1) == 0.003
    found = verdict(results)
    assert found.rounds[0].matching.comparison.lost == 1 and found.rounds[0].winning != YES
    assert "1 of 5 replicates diverged: replicate 0 diverged at round 1" in found.diverged
    assert not read_notes(lines)


def test_a_control_that_diverged_at_a_rate_that_was_not_taken_is_not_held_against_it():
    lines = [at(rate, replicate=r, eval_accuracy=0.9) for rate in (0.001, 0.01) for r in range(3)]
    lines[-1] |= GONE
    results = Results(lines)
    assert verdict(results).diverged == "" and len(results.diverged()) == 1
    assert [entry["replicate"] for entry in results.lines] == [0, 1, 2]


def test_table_and_caption_say_the_rates():
    lines = [at(OWN, "ticket", number, r) for number in (0, 1) for r in (0, 1)]
    lines += [at(rate, replicate=r, eval_accuracy=rate) for rate in (0.003, 0.01) for r in (0, 1)]
    _, body = rows(Results(lines))
    assert "lr 0.01" in str(body[1][-1]) and "lr" not in str(body[1][2])
    best = "of those tried the one with the best mean validation accuracy at the end of training"
    assert f"lr: learning rate, {best}. All but random_mask have the recipe's own, 0.001." in caption(Results(lines))
    only = [entry for entry in lines if entry["learning_rate"] != 0.003]
    assert "lr: learning rate. All but random_mask have the recipe's own, 0.001." in caption(Results(only))


def test_lines_without_other_rates_are_as_ever():
    lines = [line("ticket", 0, learning_rate=0.1), line("ticket", 1, learning_rate=0.1)]
    results = Results(lines)
    assert results.choices == {} and results.lines is results.trained and "lr" not in caption(results)


numbers = st.floats(0, 1) | st.sampled_from([0.5, 0.75])
networks = st.fixed_dictionaries(
    {rate: st.lists(numbers | st.just(math.nan), min_size=3, max_size=3) for rate in RATES}
)


@given(networks)
@settings(max_examples=200, deadline=None)
def test_the_choice_is_numpys(values):
    """Nan stands for a network that diverged."""
    lines = of(values)
    for entry in lines:
        if math.isnan(entry["eval_accuracy"]):
            entry |= GONE
    table = np.array([values[rate] for rate in RATES])  # the recipe's own first, then the smaller
    lost = np.isnan(table).sum(1)
    table = table[lost == lost.min()]
    rates = np.array(RATES)[lost == lost.min()]
    shared = ~np.isnan(table).any(0)
    means = table[:, shared].mean(1) if shared.any() else np.zeros(len(rates))
    best = rates[np.isclose(means, means.max(), rtol=1e-9, atol=0)][0]
    assert chosen(lines) == best


@given(st.lists(numbers, min_size=9, max_size=9), st.data())
@settings(max_examples=100, deadline=None)
def test_no_test_value_changes_the_choice(values, data):
    lines = of({rate: values[3 * place : 3 * place + 3] for place, rate in enumerate(RATES)})
    before = [Network.of_line(entry) for entry in Results(lines).lines]
    keys = ("test_accuracy", "test_loss", "early_stop_test_accuracy", "early_stop_step", "early_stop_test_loss")
    other = st.dictionaries(st.sampled_from(keys), st.none() | st.floats(-1e3, 1e3))
    tampered = [entry | data.draw(other) for entry in json.loads(json.dumps(lines))]
    assert [Network.of_line(entry) for entry in Results(tampered).lines] == before
