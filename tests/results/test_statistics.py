import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hf_lottery.results.statistics import estimate, paired_difference

values = st.lists(st.integers(0, 10_000).map(lambda i: i / 10_000), min_size=2, max_size=12)


@given(values)
def test_the_interval_is_scipys_one_sample_t_interval(data):
    found = estimate(data)
    assert found.n == len(data)
    assert found.mean == pytest.approx(numpy.mean(data))
    assert (found.minimum, found.maximum) == (min(data), max(data))
    if min(data) == max(data):
        assert (found.low, found.high) == (found.mean, found.mean)
    else:
        expected = stats.ttest_1samp(data, 0.0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_the_interval_by_the_printed_table():
    # t(4, 97.5%) = 2.776 as every printed table has it; s = sqrt(2.5)
    found = estimate([1, 2, 3, 4, 5])
    assert found.high - found.mean == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-3)


@given(values, st.randoms(use_true_random=False))
def test_paired_differences_are_scipys_paired_t_test(data, random):
    other = [x + random.uniform(-0.1, 0.1) for x in data]
    found = paired_difference(dict(enumerate(data)), dict(enumerate(other)))
    expected = stats.ttest_rel(data, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-9)


def test_only_replicates_that_both_have_are_paired():
    found = paired_difference({0: 1.0, 1: 2.0, 3: 9.0}, {1: 1.5, 2: 7.0, 3: 8.0})
    assert (found.n, found.mean) == (2, 0.75)
    assert paired_difference({0: 1.0}, {1: 1.0}).n == 0


def test_one_value_has_no_interval():
    found = estimate([0.5])
    assert (found.n, found.mean, found.minimum, found.maximum) == (1, 0.5, 0.5, 0.5)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(estimate([]).mean)


def test_the_negative_turns_the_interval_round():
    found = -estimate([1.0, 2.0, 4.0])
    assert found.low < found.mean < found.high
    assert found == estimate([-1.0, -2.0, -4.0])
