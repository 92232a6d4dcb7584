"""Criteria against independent computations."""

import torch

from hf_lottery.pruning import scores


def test_magnitude():
    weight = {"w": torch.tensor([[-3.0, 2.0], [0.5, -0.0]], requires_grad=True)}
    result = scores.magnitude(weight)
    assert result["w"].tolist() == [[3.0, 2.0], [0.5, 0.0]] and not result["w"].requires_grad


def test_random_is_named_by_its_seed_and_not_by_the_order_of_tensors():
    weights = {"b": torch.zeros(3, 4), "a": torch.zeros(500)}
    one = scores.random(weights, torch.Generator().manual_seed(1))
    two = scores.random(dict(reversed(weights.items())), torch.Generator().manual_seed(1))
    other = scores.random(weights, torch.Generator().manual_seed(2))
    assert list(one) == ["b", "a"] and one["b"].shape == (3, 4)
    assert all(torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name]) for name in weights)
    assert one["a"].unique().numel() == 500 and one["a"].min() >= 0 and one["a"].max() < 1
