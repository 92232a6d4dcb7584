import json
import math

import pytest

from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import Network
from hf_lottery.recipe.sections import Control, number_of_networks
from hf_lottery.results.metric import Metric
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.written_recipe import read_recipe
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
        f"Line {len(found) + 1} of results.jsonl is incomplete (the run was stopped while writing it) and was skipped."
    ]


def test_a_whole_last_line_without_its_line_end_counts(tmp_path):
    results = read_results(write(tmp_path, lines(1), json.dumps(line("ticket", 0, 1))))
    assert results.replicates() == [0, 1] and not results.notes


def test_of_a_network_written_twice_the_last_counts(tmp_path):
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


def test_the_metric_stands_in_the_lines():
    found = lines(1)
    assert Results(found).metric == Metric("accuracy")
    named = [entry | {"metric": "zero_one_loss", "greater_is_better": False} for entry in found]
    assert Results(named).metric == Metric("zero_one_loss", greater_is_better=False)
    assert Results(found[:3] + named).metric == Metric("zero_one_loss", greater_is_better=False)


@pytest.mark.parametrize("wrong", [{"metric": None}, {"metric": 7}, {"greater_is_better": None}, {"metric": ["a"]}])
def test_a_line_that_does_not_name_its_metric_is_like_one_without(wrong):
    found = [entry | {"metric": "loss", "greater_is_better": False} | wrong for entry in lines(1)]
    assert Results(found).metric == Metric("accuracy")


@pytest.mark.parametrize(
    ("keys", "metric"),
    [
        (["early_stop_test_loss", "early_stop_test_perplexity"], Metric("perplexity", greater_is_better=False)),
        (["early_stop_test_loss", "early_stop_test_f1", "early_stop_test_accuracy"], Metric("f1")),
        (["early_stop_test_loss", "early_stop_test_zero_one_loss"], Metric("zero_one_loss", greater_is_better=False)),
        (["early_stop_test_loss"], Metric("loss", greater_is_better=False)),
        (["eval_loss"], Metric("loss", greater_is_better=False)),
    ],
)
def test_of_lines_that_name_no_metric_the_first_value_at_the_early_stop_step_counts(keys, metric):
    assert Results([{"replicate": 0, "round": 0, "control": "ticket"} | dict.fromkeys(keys, 1.0)]).metric == metric


def test_missing_networks_are_named(tmp_path):
    found = [entry for entry in lines(2) if (entry["replicate"], entry["round"], entry["control"]) != (1, 2, "ticket")]
    results = Results(found)
    assert results.missing() == [Network(1, 2)]

    write(tmp_path, found)
    text = "experiment: {replicates: 3, controls: [random_mask, dense]}\nlottery: {num_rounds: 5}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    # the third replicate as the others (5 tickets, 4 random masks, 12 re-initialisations); round 5 of all, ticket and
    # mask; and the one that was left out
    assert len(results.missing(read_recipe(tmp_path).planned())) == 9 + 6 + 1


def test_the_plan_is_that_of_the_experiment(tmp_path):
    """The networks that a report expects are those that a run trains."""
    (tmp_path / "recipe.yaml").write_text(
        "experiment:\n  replicates: 2\n  controls:\n    random_reinit: {rounds: [1, 3], per_ticket: 3}\n"
        "    random_mask:\n    dense:\n    no_rewinding: {rounds: [3], per_ticket: 2}\nlottery: {num_rounds: 4}\n"
    )
    plan = [Control(name="random_reinit", rounds=[1, 3], per_ticket=3), Control(name="random_mask")]
    plan.append(Control(name="no_rewinding", rounds=[3], per_ticket=2))
    networks = Experiment(tmp_path, 4, 2, plan, 0, make_trainer=None).networks()
    assert read_recipe(tmp_path).planned() == networks
    assert len(networks) == len(set(networks)) == 2 * (5 + 2 * 3 + 4 + 3 * 2) == number_of_networks(4, 2, plan)
    assert networks[:2] == [Network(0, 0), Network(1, 0)] and networks[-1] == Network(1, 4, "random_mask")


def test_a_folder_without_a_readable_recipe_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no recipe\.yaml"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="cannot be read"):
        read_recipe(tmp_path)
