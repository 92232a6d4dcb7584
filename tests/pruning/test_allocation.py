"""ERK and uniform densities against RigL's own loop, and whole numbers that sum exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.allocation import allocate, erk_share, uniform_share
from hf_lottery.pruning.selection.select import prune

SHAPES = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "fc1": (64, 512), "fc2": (10, 64)}


def rigl_densities(shapes, density):
    """RigL's solution for ε: layers whose probability passes 1 become dense in turn, and ε is solved again."""
    dense = set()
    while True:
        divisor, right, raw = 0.0, 0.0, {}
        for name, shape in shapes.items():
            size = np.prod(shape)
            if name in dense:
                right -= size * (1 - density)
            else:
                right += size * density
                raw[name] = np.sum(shape) / size
                divisor += raw[name] * size
        epsilon = right / divisor
        worst = max(raw.values())
        if worst * epsilon <= 1:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= {name for name, value in raw.items() if value == worst}


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2, 0.05])
def test_erk_is_rigls(density):
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    kept = prune(scores, Mask.ones(scores), 1 - density, scope="erk")
    expected = rigl_densities(SHAPES, density)
    for name, (left, size) in kept.counts().items():
        assert abs(left - expected[name] * size) < 1.5
        lowest_kept = scores[name][kept[name]].min()
        assert (scores[name][~kept[name]] <= lowest_kept).all()  # within a tensor the scores decide
    total = sum(score.numel() for score in scores.values())
    assert kept.count() == total - round((1 - density) * total)


def test_uniform_brings_all_tensors_to_one_density():
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    before = Mask.ones(scores)
    uneven = prune(scores, before, 0.3, scope="global")
    kept = prune({name: torch.rand(shape) for name, shape in SHAPES.items()}, uneven, 0.4, scope="uniform")
    total = sum(score.numel() for score in scores.values())
    target = kept.count() / total
    assert kept.count() == uneven.count() - round(0.4 * uneven.count())
    assert all(abs(left - target * size) < 1 for left, size in kept.counts().values())
    assert (kept & uneven) == kept


def test_a_tensor_that_is_sparser_than_its_share_keeps_what_it_has():
    assert allocate({"a": 10, "b": 1000}, {"a": 1, "b": 1}, 500) == {"a": 10, "b": 490}


def test_rates_of_their_own_are_groups_of_their_own():
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    kept = prune(scores, Mask.ones(scores), 0.5, rates={"fc2": 0.1}, scope="erk")
    assert kept["fc2"].count_nonzero() == 576
    rest = sum(kept[name].count_nonzero() for name in ("conv1", "conv2", "fc1"))
    assert rest == sum(scores[name].numel() for name in ("conv1", "conv2", "fc1")) / 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=6), st.data())
def test_whole_numbers_that_sum(pairs, data):
    capacities = {str(index): capacity for index, (capacity, _) in enumerate(pairs)}
    shares = {str(index): share for index, (_, share) in enumerate(pairs)}
    total = data.draw(st.integers(0, sum(capacities.values())))
    kept = allocate(capacities, shares, total)
    assert sum(kept.values()) == total
    assert all(0 <= kept[name] <= capacities[name] for name in kept)
    low, high = 0.0, 51.0  # ε by bisection
    for _ in range(60):
        middle = (low + high) / 2
        if sum(min(capacities[name], middle * shares[name]) for name in kept) < total:
            low = middle
        else:
            high = middle
    assert all(abs(kept[name] - min(capacities[name], high * shares[name])) < 1.001 for name in kept)


def test_shares():
    assert erk_share((32, 16, 3, 3)) == 54 and uniform_share((32, 16, 3, 3)) == 4608
