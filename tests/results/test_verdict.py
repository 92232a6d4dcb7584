import pytest

from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results
from hf_lottery.results.verdict import NO, NO_DATA, TOO_FEW, YES, verdict
from tests.result_lines import line, lines


def judged(dense, ticket, **controls):
    """The verdict of round 1 from accuracies by replicate."""
    found = [line("ticket", 0, r, test_accuracy=a) for r, a in enumerate(dense)]
    found += [line("ticket", 1, r, test_accuracy=a) for r, a in enumerate(ticket)]
    for control, accuracies in controls.items():
        found += [line(control, 1, r, test_accuracy=a) for r, a in enumerate(accuracies)]
    return verdict(Results(found))


def test_five_replicates_of_a_winning_ticket():
    found = verdict(Results(lines()))
    assert [r.matching.answer for r in found.rounds] == [YES, YES, YES, NO]
    assert all(finding.answer == YES for r in found.rounds for finding in r.better.values())
    assert [r.earlier.answer for r in found.rounds] == [YES, YES, NO, NO]
    assert found.rounds[1].speedup == pytest.approx(1040 / 640)
    assert found.extreme.round == 3
    assert headline(found) == (
        "Matching down to 13.7% density (round 3): test accuracy within 0.20 points of dense, 95% interval over 5 "
        "replicates. It is better than random_reinit, random_mask."
    )


# dense is 0.98 in every replicate, so the differences are the ticket's own; hand-computed t intervals of three values:
# half width = 4.303 s / sqrt(3)
@pytest.mark.parametrize(
    ("ticket", "answer"),
    [
        ([0.980, 0.9805, 0.9795], YES),  # 0 ± 0.12 points: above −0.2
        ([0.979, 0.980, 0.978], TOO_FEW),  # −0.1 ± 0.25 points: holds −0.2
        ([0.975, 0.9755, 0.9745], NO),  # −0.5 ± 0.12 points: below −0.2
        ([0.980, 0.980], TOO_FEW),  # two replicates decide nothing
        ([0.90], TOO_FEW),
        ([0.979] * 3, YES),  # no variance: the interval is the mean
        ([0.977] * 3, NO),
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
        ([0.979, 0.982, 0.976], TOO_FEW),  # 0.1 ± 0.75 points
        ([0.90, 0.90], TOO_FEW),
    ],
)
def test_better_than_a_control(control, answer):
    found = judged([0.98] * 3, [0.98] * 3, random_reinit=control)
    assert found.rounds[0].better["random_reinit"].answer == answer


def test_equal_values_are_matching_and_not_better():
    found = judged([0.98] * 3, [0.98] * 3, random_reinit=[0.98] * 3)
    assert found.rounds[0].matching.answer == YES
    assert found.rounds[0].better["random_reinit"].answer == NO
    assert found.rounds[0].earlier.answer == YES  # 800 of 1000 steps
    assert found.rounds[0].winning == NO
    assert headline(found).endswith(
        "It is no better than random_reinit. No winning ticket: wherever it matches, a random re-initialisation or a "
        "random mask does as well."
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
        "Too few replicates to say (1 replicate; 3 are needed). By the mean alone it matches dense within 0.20 points "
        "down to 13.7% density."
    )


def test_without_dense_or_without_rounds_the_headline_says_so():
    without_dense = verdict(Results([entry for entry in lines(3) if entry["round"] > 0]))
    assert without_dense.rounds[0].matching.answer == NO_DATA
    assert without_dense.rounds[0].better["random_mask"].answer == YES
    assert headline(without_dense) == "Nothing to compare with: no dense network (round 0) has finished."
    assert (
        headline(verdict(Results(lines(3, rounds=1))))
        == "Nothing to judge yet: no round after the dense network has finished."
    )


def several(**accuracies):
    """The verdict of three replicates; control -> {round: accuracy of all three, a little apart}."""
    found = []
    for control, rounds in accuracies.items():
        for round, accuracy in rounds.items():
            found += [line(control, round, r, test_accuracy=accuracy + 0.0001 * r * round) for r in range(3)]
    return verdict(Results(found))


def test_a_winning_ticket_at_a_greater_density_than_the_extreme_is_named():
    found = several(ticket={0: 0.98, 1: 0.98, 2: 0.98}, random_reinit={1: 0.97, 2: 0.98}, random_mask={1: 0.96})
    assert [judged.winning for judged in found.rounds] == [YES, NO]
    assert found.extreme.round == 2 and found.winning.round == 1
    assert headline(found).endswith(
        "It is no better than random_reinit. A winning ticket, which must also beat its controls, is shown down to "
        "51.0%."
    )


def test_matching_where_no_control_was_run_leaves_the_question_to_other_rounds():
    found = several(ticket={0: 0.98, 1: 0.98, 2: 0.98}, random_reinit={1: 0.97})
    assert [judged.winning for judged in found.rounds] == [YES, NO_DATA]
    assert "No control was run at this density" in headline(found)
    assert headline(found).endswith("is shown down to 51.0%.")


def test_an_undecided_control_is_not_a_winning_ticket():
    found = judged([0.98] * 3, [0.98] * 3, random_reinit=[0.979, 0.982, 0.976])
    assert found.rounds[0].winning == TOO_FEW
    assert headline(found).endswith("A winning ticket, which must also beat its controls, is not shown.")


def test_better_than_other_controls_alone_does_not_make_a_winning_ticket():
    one_shot = [line("random_mask", 1, r, test_accuracy=0.9) | {"control": "one_shot"} for r in range(3)]
    found = verdict(Results([entry for entry in lines(3, controls=()) if entry["round"] < 2] + one_shot))
    assert found.rounds[0].better["one_shot"].answer == YES
    assert found.rounds[0].winning == NO_DATA and found.winning is None


def test_an_honest_negative():
    found = judged([0.98, 0.981, 0.979], [0.95, 0.951, 0.949], random_reinit=[0.95, 0.951, 0.949])
    assert headline(found) == "No ticket: at no density is test accuracy within 0.20 points of dense (3 replicates)."


def test_undecided_rounds_are_named():
    found = judged([0.98] * 3, [0.979, 0.980, 0.978])
    assert headline(found) == (
        "No density is shown to match dense within 0.20 points (3 replicates); "
        "the interval at 51.0% density holds both answers."
    )


def test_a_matching_density_without_controls_is_not_called_a_winning_ticket():
    assert "not shown to be a winning ticket" in headline(verdict(Results(lines(3, controls=()))))


def test_at_the_early_stop_step_the_metric_there_is_judged():
    found = [line("ticket", 0, r, test_accuracy=0.5, early_stop_test_accuracy=0.98) for r in range(3)]
    found += [line("ticket", 1, r, test_accuracy=0.9, early_stop_test_accuracy=0.97) for r in range(3)]
    assert verdict(Results(found)).rounds[0].matching.answer == YES
    early = verdict(Results(found), early_stop=True)
    assert early.rounds[0].matching.answer == NO
    assert early.rounds[0].matching.difference.mean == pytest.approx(-0.01)


def test_a_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="the tolerance is -1; it must be 0 or more"):
        verdict(Results(lines(1)), tolerance=-1)
