import json
import math

import pytest

from hf_lottery.experiment.experiment import Experiment
from hf_lottery.recipe.sections import Control
from hf_lottery.results.results import (
    Results,
    missing_units,
    planned_units,
    read_results,
    unit_folder,
    unit_name,
)
from tests.result_lines import line, lines, write


def test_lines_come_back_as_they_were_written(tmp_path):
    found = lines(2)
    results = read_results(write(tmp_path, found))
    assert sorted(map(json.dumps, results.lines)) == sorted(map(json.dumps, found))
    assert results.notes == []
    assert results.controls() == ["random_reinit", "random_mask"]
    assert results.replicates() == [0, 1]
    assert results.rounds() == [0, 1, 2, 3, 4]
    assert results.rounds("random_mask") == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "tail",
    [
        '{"replicate": 1, "rou',
        "{",
        '{"replicate": 1}',
        "[1, 2]",
        "\udcff".encode("utf-8", "surrogatepass").decode("latin1"),
    ],
)
def test_a_torn_last_line_is_skipped_with_a_note(tmp_path, tail):
    found = lines(1)
    results = read_results(write(tmp_path, found, tail))
    assert len(results.lines) == len(found)
    assert results.notes == [
        f"Line {len(found) + 1} of results.jsonl is torn (the run was stopped while writing it) and was skipped."
    ]


def test_a_whole_last_line_without_its_line_end_counts(tmp_path):
    results = read_results(write(tmp_path, lines(1), json.dumps(line("ticket", 0, 1))))
    assert results.replicates() == [0, 1] and not results.notes


def test_of_a_unit_written_twice_the_last_counts(tmp_path):
    results = read_results(write(tmp_path, [line("ticket", 0), line("ticket", 0, test_accuracy=0.5)]))
    assert results.values("test_accuracy") == {0: 0.5}


def test_nothing_finished_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no results\.jsonl, so nothing has finished there"):
        read_results(tmp_path)
    write(tmp_path, [], '{"replic')
    with pytest.raises(ValueError, match=r"nothing has finished in .* yet"):
        read_results(tmp_path)


def test_samples_of_a_replicate_are_averaged_first():
    found = [line("random_reinit", 1, 0, sample, test_accuracy=a) for sample, a in enumerate([0.1, 0.2, 0.6])]
    found.append(line("random_reinit", 1, 1, 0, test_accuracy=0.7))
    assert Results(found).values("test_accuracy", "random_reinit", 1) == pytest.approx({0: 0.3, 1: 0.7})


def test_values_that_are_not_there_are_left_out():
    found = [
        line("ticket", 0, 0, test_accuracy=math.nan),
        line("ticket", 0, 1, early_stop_step=None),
        line("ticket", 0, 2),
    ]
    results = Results(found)
    assert list(results.values("test_accuracy")) == [1, 2]
    assert list(results.values("early_stop_step")) == [0, 2]
    assert results.values("test_accuracy", round=7) == {}
    assert math.isnan(results.density(round=7))


def test_densities_that_differ_by_a_weight_belong_to_one_round():
    results = Results([line("ticket", 1, 0, density=0.5), line("ticket", 1, 1, density=0.502)])
    assert results.density(round=1) == pytest.approx(0.501)
    assert len(results.values("test_accuracy", round=1)) == 2


def test_the_metric_is_read_off_the_lines():
    assert Results(lines(1)).metric == "accuracy"
    found = {
        "replicate": 0,
        "round": 0,
        "control": "ticket",
        "early_stop_test_loss": 1.0,
        "early_stop_test_perplexity": 20.0,
    }
    assert Results([found]).metric == "perplexity"
    assert not Results([found]).greater_is_better


def test_missing_units_are_named():
    found = [entry for entry in lines(2) if (entry["replicate"], entry["round"], entry["control"]) != (1, 2, "ticket")]
    results = Results(found)
    assert missing_units(results) == [(1, 2, "ticket", 0)]
    assert unit_name((1, 2, "ticket", 0)) == "the ticket of round 2, replicate 1"
    assert unit_name((1, 2, "random_reinit", 2)) == "random_reinit (sample 2) of round 2, replicate 1"

    recipe = {"experiment": {"replicates": 3, "controls": ["random_mask", "dense"]}, "lottery": {"num_rounds": 5}}
    # the third replicate as the others (5 tickets, 4 random masks, 12 re-initialisations); round 5 of all, ticket and
    # mask; and the one that was left out
    assert len(missing_units(results, recipe)) == 9 + 6 + 1


def test_the_plan_is_that_of_the_experiment(tmp_path):
    """The units that a report expects are those that a run trains, and lie where it looks for them."""
    controls = {"random_reinit": {"rounds": [1, 3], "per_ticket": 3}, "random_mask": None, "dense": None}
    recipe = {"experiment": {"replicates": 2, "controls": controls}, "lottery": {"num_rounds": 4}}
    plan = [
        Control(name="random_reinit", rounds=[1, 3], per_ticket=3),
        Control(name="random_mask"),
    ]
    units = Experiment(tmp_path, 4, 2, plan, 0, make_trainer=None).units()
    assert planned_units(recipe) == {(unit.replicate, unit.round, unit.control, unit.sample) for unit in units}
    for unit in units:
        found = unit_folder(tmp_path, (unit.replicate, unit.round, unit.control, unit.sample))
        assert found == unit.path(tmp_path)
