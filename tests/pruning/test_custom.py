"""A user's function as the criterion: the same rules as for any other, and wrong scores are named."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from hf_lottery import LotteryConfig, Ticket
from hf_lottery.config import CRITERIA as NAMES
from hf_lottery.pruning.criteria import CRITERIA, DATA, INITIAL
from tests.tiny import make_trainer, same, weights


def absolute_value(weights, context):
    return {name: weight.detach().abs() for name, weight in weights.items()}


def smallness(weights, context):
    return {name: -weight.detach().abs() for name, weight in weights.items()}


def gradient_times_weight(weights, context):
    """SNIP over all calibration batches, written by a user."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in context.batches():
        gradients = torch.autograd.grad(context.loss(batch), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += gradient
    return {name: (weights[name] * total[name]).abs() for name in weights}


def moved(weights, context):
    initial = context.initial()
    return {name: (weight - initial[name]).abs() for name, weight in weights.items()}


def trained(folder, criterion, **lottery):
    config = LotteryConfig(criterion=criterion, pruning_rate=0.25, **lottery)
    trainer = make_trainer(folder, lottery_config=config, max_steps=3)
    trainer.train()
    return trainer


@pytest.mark.parametrize("lottery", [{}, {"scope": "global"}, {"pattern": "neuron"}, {"pattern": "2:4"}])
@pytest.mark.parametrize(
    "function, built_in", [(absolute_value, "magnitude"), (gradient_times_weight, "snip"), (moved, "movement")]
)
def test_a_function_that_scores_as_a_built_in_criterion_gives_its_mask(tmp_path, function, built_in, lottery):
    ours, theirs = (trained(tmp_path / str(c), c, **lottery) for c in (function, built_in))
    assert ours.prune() == theirs.prune()
    assert ours.prune() == theirs.prune()
    assert same(weights(ours.model), weights(theirs.model))


def test_another_function_gives_another_mask_of_the_same_size(tmp_path):
    small, large = (trained(tmp_path / c.__name__, c) for c in (smallness, absolute_value))
    before = weights(small.model)["first.weight"].abs()
    mask = small.prune()["first.weight"]
    assert before[~mask].min() > before[mask].max()
    assert mask.sum() == large.prune()["first.weight"].sum()


def draws_random_scores(weights, context):
    """Draws from every source of chance that training shares, moves the batch norm, and ends in evaluation mode."""
    context.model(**context.batches()[0])
    context.model.eval()
    return {name: torch.rand_like(weight) for name, weight in weights.items()}


def test_what_a_function_draws_and_changes_of_modes_and_buffers_is_undone_and_is_the_same_again(tmp_path):
    one, two = (trained(tmp_path / name, draws_random_scores) for name in "ab")
    torch.rand(5)  # a resumed search has another state of the random numbers here
    state, before = torch.get_rng_state(), weights(one.model)
    mask = one.prune()
    assert torch.equal(torch.get_rng_state(), state)
    assert one.model.training and one.model.dropout.training
    assert all(torch.equal(weights(one.model)[name], before[name]) for name in before if name not in mask)
    assert mask == two.prune()


def freezes_and_calls_backward(weights, context):
    context.loss(context.batches()[0]).backward()
    scores = {name: weight.grad.abs() for name, weight in weights.items()}
    context.model.requires_grad_(False)
    return scores


def test_what_a_function_freezes_is_trained_afterwards_and_its_gradients_are_gone(tmp_path):
    trainer = trained(tmp_path, freezes_and_calls_backward)
    trainer.model.norm.requires_grad_(False)
    trainer.prune()
    assert {name for name, p in trainer.model.named_parameters() if not p.requires_grad} == {
        "norm.weight",
        "norm.bias",
    }
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_search_records_the_name_and_goes_on_where_it_was_stopped(tmp_path):
    def search(folder, criterion=gradient_times_weight, num_rounds=2):
        config = LotteryConfig(criterion=criterion, num_rounds=num_rounds)
        return make_trainer(folder, lottery_config=config, max_steps=3).find_ticket()

    ticket = search(tmp_path / "whole")
    search(tmp_path / "stopped", num_rounds=1)
    resumed = search(tmp_path / "stopped")
    assert resumed.mask == ticket.mask and same(resumed.rewind.tensors, ticket.rewind.tensors)
    assert ticket.info["criterion"] == "gradient_times_weight"
    ticket.save_pretrained(tmp_path / "ticket")
    assert Ticket.from_pretrained(tmp_path / "ticket").info["criterion"] == "gradient_times_weight"
    assert json.loads((tmp_path / "whole" / "search.json").read_text())["criterion"] == "gradient_times_weight"
    with pytest.raises(ValueError, match="with criterion 'gradient_times_weight', and it is 'smallness' now"):
        search(tmp_path / "stopped", smallness)


def wrong(change):
    def wrong_scores(weights, context):
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
        return change(scores)

    return wrong_scores


def without(scores):
    del scores["classifier.weight"]
    return scores


@pytest.mark.parametrize(
    "change, says",
    [
        (without, "returned no scores for 'classifier.weight'"),
        (lambda s: {**s, "first.bias": torch.ones(24)}, "scored 'first.bias', which is not pruned"),
        (lambda s: {**s, "first.weight": torch.ones(12, 24)}, r"shape \(12, 24\) for 'first.weight'.*\(24, 12\)"),
        (lambda s: {**s, "first.weight": s["first.weight"] / 0 * 0}, "returned NaN for 'first.weight'"),
        (lambda s: {**s, "first.weight": s["first.weight"].long()}, "scores of torch.int64 for 'first.weight'"),
        (lambda s: {**s, "first.weight": 1.0}, "scores of type float for 'first.weight'"),
        (lambda s: None, "returned a NoneType: return a dict"),
    ],
)
def test_wrong_scores_are_refused_by_the_name_of_function_and_tensor(tmp_path, change, says):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(criterion=wrong(change)))
    with pytest.raises(ValueError, match=f"^criterion wrong_scores .*{says}"):
        trainer.prune()
    assert trainer.mask.density() == 1


def test_a_nan_score_of_a_weight_that_is_pruned_already_does_no_harm(tmp_path):
    def relative(weights, context):
        return {name: weight.detach().abs() / context.mask[name] for name, weight in weights.items()}  # 0 / 0

    trainer = trained(tmp_path, relative)
    trainer.prune()
    assert trainer.prune().count() == sum(round(0.75 * round(0.75 * size)) for size in (288, 72))


def magnitude(weights, context):
    return absolute_value(weights, context)


class Scores:
    def __call__(self, weights, context):
        return absolute_value(weights, context)


def non_ascii(weights, context):
    return absolute_value(weights, context)


non_ascii.__name__ = "größe"


@pytest.mark.parametrize(
    "criterion, says",
    [
        (lambda weights, context: weights, r"no name that a ticket could record: write it as `def my_scores"),
        (partial(absolute_value, context=None), "no name that a ticket could record"),
        (Scores(), "no name that a ticket could record"),
        (non_ascii, "no name that a ticket could record"),
        (magnitude, "function called 'magnitude', which is also the name of a built-in criterion"),
        ("absolute_value", "criterion is 'absolute_value'; it must be one of"),
        (3, "criterion is 3; it must be one of"),
    ],
)
def test_what_cannot_be_a_criterion_is_refused_by_the_config(criterion, says):
    with pytest.raises(ValueError, match=says):
        LotteryConfig(criterion=criterion)


def test_a_config_gives_the_name_and_patterns_that_use_no_criterion_refuse_a_function():
    config = LotteryConfig(criterion=absolute_value)
    assert config.criterion is absolute_value
    assert config.criterion_name == config.to_dict()["criterion"] == "absolute_value"
    json.dumps(config.to_dict())
    with pytest.raises(ValueError, match="criterion is 'absolute_value', and pattern rank"):
        LotteryConfig(criterion=absolute_value, pattern="rank")


# --- what the built-in ones say they need ---


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lora_product"])
def test_a_criterion_uses_what_it_says_it_needs_and_nothing_else(tmp_path, name):
    context = trained(tmp_path, name).pruning_context()
    used = set()

    def noting(what, function):
        def noted(*args):
            used.add(what)
            return function(*args)

        return noted

    context = replace(
        context,
        initial=noting(INITIAL, context.initial),
        batches=noting(DATA, context.batches),
        loss=noting(DATA, context.loss),
    )
    CRITERIA[name].function(context.weights, context)
    needs = CRITERIA[name].needs
    assert used == (set() if needs is None else {needs})


def test_a_function_that_takes_other_arguments_is_refused_by_the_config():
    def of_weights_alone(weights):
        return weights

    with pytest.raises(ValueError, match=r"criterion of_weights_alone does not take \(weights, context\)"):
        LotteryConfig(criterion=of_weights_alone)
