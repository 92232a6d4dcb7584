"""The grid of a metric's values."""

import random

import numpy
import pytest

from hf_lottery.results.resolution import resolution


@pytest.mark.parametrize("count", [2, 7, 100, 500, 2000, 10_000, 60_000])
@pytest.mark.parametrize("kind", [float, numpy.float32])
def test_a_share_of_examples_lies_on_their_grid(count, kind):
    generator = random.Random(count)
    values = [float(kind(generator.randrange(count + 1) / count)) for _ in range(20)]
    assert resolution(values, count) == 1 / count
    found = resolution(values)
    assert found >= 1 / count - 1e-12
    assert all(abs(value / found - round(value / found)) < 0.01 for value in values)


def test_few_values_give_a_grid_that_is_too_coarse_not_one_that_is_too_fine():
    assert resolution([0.98, 0.98], None) == pytest.approx(0.98)
    assert resolution([0.98, 0.97, 0.965]) == pytest.approx(0.005)
    assert resolution([1000.0, 800.0, 900.0]) == 100


def test_a_loss_has_no_grid():
    generator = random.Random(0)
    values = [generator.random() for _ in range(5)]
    assert resolution(values) == resolution(values, 10_000) == 0
    assert resolution([]) == 0


def test_a_number_of_examples_that_does_not_fit_the_values_is_not_used():
    assert resolution([0.5, 0.25], 3) == 0.25
