import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hf_lottery.results.statistics import estimate, paired_difference, replicates_to_decide

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


@given(values, st.floats(-1, 1))
def test_p_values_are_scipys_one_sided_t_test(data, bound):
    found = estimate(data)
    if min(data) < max(data):
        for ours, side in ((found.p_above(bound), "greater"), (found.p_below(bound), "less")):
            assert ours == pytest.approx(stats.ttest_1samp(data, bound, alternative=side).pvalue, rel=1e-6, abs=1e-12)
    else:
        assert found.p_above(bound) == (0.0 if found.mean > bound else 1.0)


def test_two_values_are_the_least_for_a_p_value():
    assert estimate([0.5]).p_above(0.0) == estimate([]).p_below(0.0) == 1.0


def test_the_deviation_is_never_smaller_than_the_resolution():
    found = estimate([0.5] * 4, resolution=0.01)
    assert found.high - 0.5 == pytest.approx(3.182446 * 0.01 / 2)  # t(3, 97.5%) times 0.01 / √4
    wide = [0.1, 0.5, 0.9]
    assert estimate(wide, resolution=0.01) == estimate(wide)


@pytest.mark.parametrize(("distance", "expected"), [(1.0, 10), (0.5, 34), (2.0, 5), (10.0, 3)])
def test_how_many_replicates_decide(distance, expected):
    """G*Power 3.1, one-sample t test, one tail, error 0.025, power 0.8: 10 for d = 1, 34 for 0.5, 5 for 2."""
    assert replicates_to_decide(distance, 1.0, 0.025) == expected


def test_no_number_of_replicates_decides_what_is_no_difference():
    assert replicates_to_decide(0.0, 1.0, 0.025) is None
    assert replicates_to_decide(-1.0, 1.0, 0.025) is None
    assert replicates_to_decide(1e-3, 1.0, 0.025) is None
    assert replicates_to_decide(1e-3, 0.0, 0.025) == 3
