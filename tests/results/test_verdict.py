import pytest
from scipy import stats

from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results
from hf_lottery.results.verdict import NO, NO_DATA, NO_DIFFERENCE, TOO_FEW, UNDECIDED, YES, verdict
from tests.result_lines import line, lines


def judged(dense, ticket, **controls):
    """The verdict of round 1 from accuracies by replicate."""
    found = [line("ticket", 0, r, test_accuracy=a) for r, a in enumerate(dense)]
    found += [line("ticket", 1, r, test_accuracy=a) for r, a in enumerate(ticket)]
    for control, accuracies in controls.items():
        found += [line(control, 1, r, test_accuracy=a) for r, a in enumerate(accuracies)]
    return verdict(Results(found))


def several(**accuracies):
    """The verdict of four replicates; control -> {round: accuracy of all four, a little apart}."""
    found = []
    for control, rounds in accuracies.items():
        for round, accuracy in rounds.items():
            found += [line(control, round, r, test_accuracy=accuracy + 0.0001 * r * round) for r in range(4)]
    return verdict(Results(found))


def test_five_replicates_of_a_winning_ticket():
    found = verdict(Results(lines()))
    assert [r.matching.answer for r in found.rounds] == [YES, YES, YES, NO]
    assert all(finding.answer == YES for r in found.rounds for finding in r.better.values())
    assert [r.earlier.answer for r in found.rounds] == [YES, YES, NO_DIFFERENCE, NO]
    assert [r.winning for r in found.rounds] == [YES, YES, YES, NO]
    assert found.rounds[1].speedup == pytest.approx(1040 / 640)
    assert found.sequence == [1, 2, 3] and found.extreme.round == 3
    assert headline(found) == (
        "Matching down to 13.7% density (round 3): test accuracy within 0.20 points of dense, there and at each "
        "greater density that was judged, over 5 replicates. At 7.12% it does not match. It is a winning ticket: "
        "better than random_reinit and random_mask. A winning ticket, which matches and is better than random_reinit "
        "and random_mask, is also shown at 51.0%, 26.2% density."
    )


# dense is 0.98 in every replicate, so the differences are the ticket's own; hand-computed t intervals of three values:
# half width = 4.303 s / sqrt(3)
@pytest.mark.parametrize(
    ("ticket", "answer"),
    [
        ([0.980, 0.9805, 0.9795], YES),  # 0 ± 0.12 points: above −0.2
        ([0.979, 0.980, 0.978], UNDECIDED),  # −0.1 ± 0.25 points: holds −0.2
        ([0.975, 0.9755, 0.9745], NO),  # −0.5 ± 0.12 points: below −0.2
        ([0.980, 0.980], TOO_FEW),  # two replicates decide nothing
        ([0.90], TOO_FEW),
        ([0.979] * 3, UNDECIDED),  # equal on a grid of 1/1000: −0.1 ± 0.25 points
        ([0.9799, 0.9799, 0.9799], YES),  # equal on a grid of 1/10000: −0.01 ± 0.025 points
        ([0.97] * 3, UNDECIDED),  # equal on a grid of 1/100
    ],
)
def test_matching(ticket, answer):
    assert judged([0.98] * len(ticket), ticket).rounds[0].matching.answer == answer


@pytest.mark.parametrize(
    ("control", "answer"),
    [
        ([0.970, 0.9705, 0.9695], YES),
        ([0.980, 0.9805, 0.9795], NO),  # 0 ± 0.12 points: an advantage of 0.2 points is ruled out
        ([0.990, 0.9905, 0.9895], NO),
        ([0.979, 0.982, 0.976], UNDECIDED),  # 0.1 ± 0.75 points
        ([0.90, 0.90], TOO_FEW),
    ],
)
def test_better_than_a_control(control, answer):
    found = judged([0.98] * 3, [0.98] * 3, random_reinit=control)
    assert found.rounds[0].better["random_reinit"].answer == answer


def with_examples(count, ticket):
    found = [line("ticket", 0, r, test_accuracy=0.98, test_examples=count) for r in range(3)]
    found += [line("ticket", 1, r, test_accuracy=ticket, test_examples=count) for r in range(3)]
    return verdict(Results(found)).rounds[0].matching


def test_equal_differences_are_known_to_one_test_example():
    # as if the deviation were 1/count: half width = 4.303 / count / sqrt(3)
    for count in (50, 500, 10_000):
        found = with_examples(count, 0.98).difference
        assert found.high == -found.low == pytest.approx(4.302653 / count / 3**0.5, rel=1e-6)
    assert with_examples(10_000, 0.98).answer == YES
    assert with_examples(500, 0.98).answer == UNDECIDED


def test_equal_values_are_matching_and_not_better():
    equal = [0.98, 0.9801, 0.9799, 0.98]
    found = judged(equal, equal, random_reinit=equal, random_mask=equal)
    assert found.rounds[0].matching.answer == YES
    assert found.rounds[0].better["random_reinit"].answer == NO
    assert found.rounds[0].earlier.answer == YES  # 800 of 1000 steps
    assert found.rounds[0].winning == NO
    assert headline(found).endswith(
        "It is not better than random_reinit, random_mask. No winning ticket: wherever both controls were run, it "
        "does not match or is not better than one."
    )


def test_lower_is_better_for_perplexity_and_the_tolerance_is_a_share_of_dense():
    def found(ticket):
        results = []
        for replicate in range(3):
            for round, value in ((0, 20.0), (1, ticket)):
                entry = line("ticket", round, replicate)
                del entry["test_accuracy"], entry["early_stop_test_accuracy"]
                value += 0.001 * replicate * round
                results.append(entry | {"test_perplexity": value, "early_stop_test_perplexity": value})
        return verdict(Results(results), tolerance=0.01).rounds[0].matching

    assert found(20.1).answer == YES  # 0.1 worse, 0.2 allowed
    assert found(20.4).answer == NO
    assert found(19.0).answer == YES
    assert found(20.4).difference.mean == pytest.approx(-0.401)


def test_replicates_with_different_missing_rounds_are_paired_where_they_can_be():
    found = [line("ticket", 0, r) for r in (0, 1, 2)] + [line("ticket", 1, r) for r in (1, 2, 3)]
    judgement = verdict(Results(found))
    assert judgement.replicates == 3
    assert judgement.rounds[0].matching.difference.n == 2
    assert judgement.rounds[0].matching.answer == TOO_FEW


def test_one_replicate_says_what_the_mean_says_and_no_more():
    found = verdict(Results(lines(1)))
    assert {r.matching.answer for r in found.rounds} == {TOO_FEW}
    assert headline(found) == (
        "Undecided: 1 replicate, and a verdict needs 3 replicates. By the mean alone it matches dense within 0.20 "
        "points down to 13.7% density."
    )


def test_without_dense_or_without_rounds_the_headline_says_so():
    without_dense = verdict(Results([entry for entry in lines(3) if entry["round"] > 0]))
    assert without_dense.rounds[0].matching.answer == NO_DATA
    assert without_dense.rounds[3].better["random_mask"].answer == YES
    assert headline(without_dense).startswith("Nothing to compare with: no finished dense network (round 0)")
    assert (
        headline(verdict(Results(lines(3, rounds=1))))
        == "Nothing to judge yet: no round after the dense network has finished."
    )


@pytest.mark.parametrize(("run", "missing"), [("random_reinit", "random_mask"), ("random_mask", "random_reinit")])
def test_a_control_that_was_not_run_is_not_beaten(run, missing):
    found = several(ticket={0: 0.98, 1: 0.98}, **{run: {1: 0.9}})
    assert found.rounds[0].better[run].answer == YES and found.rounds[0].winning == f"{missing} not run"
    assert found.winning is None
    assert headline(found).endswith(
        f"It is better than {run}. {missing} was not run at this density, so it is not shown to be a winning ticket."
    )


def test_better_than_other_controls_alone_does_not_make_a_winning_ticket():
    one_shot = [line("random_mask", 1, r, test_accuracy=0.9) | {"control": "one_shot"} for r in range(4)]
    found = verdict(Results([entry for entry in lines(4, controls=()) if entry["round"] < 2] + one_shot))
    assert found.rounds[0].better["one_shot"].answer == YES
    assert found.rounds[0].winning == "random_reinit and random_mask not run" and found.winning is None


def test_a_winning_ticket_at_a_greater_density_than_the_extreme_is_named():
    found = several(
        ticket={0: 0.98, 1: 0.98, 2: 0.98}, random_reinit={1: 0.97, 2: 0.98}, random_mask={1: 0.96, 2: 0.97}
    )
    assert [judged.winning for judged in found.rounds] == [YES, NO]
    assert found.extreme.round == 2 and found.winning.round == 1
    assert headline(found).endswith(
        "It is better than random_mask. It is not better than random_reinit. A winning ticket, which matches and is "
        "better than random_reinit and random_mask, is shown at 51.0% density."
    )


def test_a_matching_density_without_controls_is_not_called_a_winning_ticket():
    assert "not shown to be a winning ticket" in headline(verdict(Results(lines(4, controls=()))))


def test_an_undecided_control_is_not_a_winning_ticket():
    apart = [0.979, 0.982, 0.976, 0.979]
    found = judged([0.98, 0.9801, 0.98, 0.98], [0.98] * 4, random_reinit=apart, random_mask=[0.9, 0.901, 0.9, 0.9])
    assert found.rounds[0].winning == UNDECIDED
    assert "Undecided against random_reinit." in headline(found)
    assert headline(found).endswith("A winning ticket is not shown.")


def test_an_honest_negative():
    found = judged([0.98, 0.981, 0.979], [0.95, 0.951, 0.949], random_reinit=[0.95, 0.951, 0.949])
    assert found.rounds[0].matching.answer == NO or found.rounds[0].matching.difference.low == pytest.approx(-0.03)
    assert headline(found) == "No ticket: at no density is test accuracy within 0.20 points of dense (3 replicates)."


def test_an_undecided_round_says_how_many_replicates_would_decide():
    found = judged([0.98] * 4, [0.979, 0.980, 0.978, 0.979])
    needed = found.rounds[0].matching.replicates_to_decide
    # scipy's power of a one-sided t test at 2.5%, for a distance of 0.1 points and the deviation that was measured
    deviation = 0.001  # the step of the grid, as the measured one is smaller

    def power(n):
        return stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.001 / deviation * n**0.5)

    assert power(needed) >= 0.8 > power(needed - 1)
    assert headline(found) == (
        "It is not shown to match dense within 0.20 points (4 replicates): at 51.0%, where the sequence from dense to "
        f"sparse begins, it is undecided: about {needed} replicates would probably decide."
    )


def test_matching_down_to_ends_at_the_first_round_that_is_not_shown():
    found = [line("ticket", 0, r, test_accuracy=0.98) for r in range(4)]
    for number, apart in ((1, 0.0001), (2, 0.004), (3, 0.0001), (4, 0.00011)):
        found += [line("ticket", number, r, test_accuracy=0.98 + apart * (-1) ** r) for r in range(4)]
    result = verdict(Results(found))
    assert [judged.matching.answer for judged in result.rounds] == [YES, UNDECIDED, YES, YES]
    assert result.sequence == [1] and result.extreme.round == 1
    text = headline(result)
    assert text.startswith(
        "Matching down to 51.0% density (round 1): test accuracy within 0.20 points of dense, over "
    )
    assert "Judged one by one, with Holm's correction, it also matches at 13.7%, 7.12% density." in text


def test_the_answers_of_many_rounds_are_holms():
    """Against p values of scipy's paired t test, and the correction as its definition has it."""
    dense = [0.9801, 0.9797, 0.9804, 0.98, 0.9806]
    tickets = {
        number: [0.9801 + 0.0004 * ((r * 7 + number * 3) % 5 - 2) + 0.0003 * number for r in range(5)]
        for number in range(1, 5)
    }
    found = [line("ticket", 0, r, test_accuracy=a) for r, a in enumerate(dense)]
    for number, accuracies in tickets.items():
        found += [line("ticket", number, r, test_accuracy=0.99) for r in range(5)]
        found += [line("random_reinit", number, r, test_accuracy=1.97 - a) for r, a in enumerate(accuracies)]
    p_values = {
        number: stats.ttest_rel([0.99] * 5, [1.97 - a for a in accuracies], alternative="greater").pvalue
        for number, accuracies in tickets.items()
    }
    ordered = sorted(p_values, key=p_values.get)
    expected = set()
    for rank, number in enumerate(ordered):
        if p_values[number] > 0.025 / (4 - rank):
            break
        expected.add(number)
    answers = {r.round: r.better["random_reinit"].answer for r in verdict(Results(found)).rounds}
    assert {number for number, answer in answers.items() if answer == YES} == expected
    assert 0 < len(expected) < sum(p < 0.025 for p in p_values.values())


def test_a_difference_below_the_resolution_of_the_early_stop_step_is_none():
    found = [line("ticket", 0, r, early_stop_step=1000) for r in range(8)]
    found += [line("ticket", 1, r, early_stop_step=900 if r else 1000) for r in range(8)]
    found += [line("ticket", 2, r, early_stop_step=900 - 100 * (r % 2)) for r in range(8)]
    answers = [judged.earlier.answer for judged in verdict(Results(found)).rounds]
    assert answers == [NO_DIFFERENCE, YES]


def test_looks_share_the_error_rate():
    dense, ticket = [0.98, 0.981, 0.979, 0.98], [0.9805, 0.9806, 0.979, 0.9792]
    found = [line("ticket", 0, r, test_accuracy=a) for r, a in enumerate(dense)]
    found += [line("ticket", 1, r, test_accuracy=a) for r, a in enumerate(ticket)]
    p = verdict(Results(found)).rounds[0].matching.comparison.p_yes
    for looks in (1, 2, 4, 8):
        answer = verdict(Results([entry | {"looks": looks} for entry in found])).rounds[0].matching.answer
        assert answer == (YES if p <= 0.025 / looks else UNDECIDED)
    assert 0.025 / 8 < p <= 0.025


def test_at_the_early_stop_step_the_metric_there_is_judged():
    found = [line("ticket", 0, r, test_accuracy=0.5, early_stop_test_accuracy=0.98 + r / 1e4) for r in range(3)]
    found += [line("ticket", 1, r, test_accuracy=0.9, early_stop_test_accuracy=0.97) for r in range(3)]
    assert verdict(Results(found)).rounds[0].matching.answer == YES
    early = verdict(Results(found), early_stop=True)
    assert early.rounds[0].matching.answer == NO
    assert early.rounds[0].matching.difference.mean == pytest.approx(-0.0101)


def test_a_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="the tolerance is -1; it must be 0 or more"):
        verdict(Results(lines(1)), tolerance=-1)
