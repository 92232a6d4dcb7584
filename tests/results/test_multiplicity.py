"""Holm's correction and the fixed sequence, against their definitions as closed tests."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from hf_lottery.results.multiplicity import fixed_sequence, holm

p_values = st.lists(st.floats(0, 1).map(lambda p: p**3), min_size=1, max_size=6).map(lambda ps: dict(enumerate(ps)))


def closed_test(p_values, rejects):
    """Reject what is in no intersection hypothesis that is kept (Marcus, Peritz & Gabriel 1976)."""
    subsets = [set(keys) for size in range(1, len(p_values) + 1) for keys in combinations(p_values, size)]
    return {key for key in p_values if all(rejects(keys) for keys in subsets if key in keys)}


@given(p_values)
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    expected = closed_test(p_values, lambda keys: min(p_values[key] for key in keys) <= 0.025 / len(keys))
    assert holm(p_values, 0.025) == expected


@given(p_values)
def test_the_fixed_sequence_is_the_closed_test_of_each_ones_first(p_values):
    order = sorted(p_values)
    expected = closed_test(p_values, lambda keys: p_values[min(keys)] <= 0.025)
    assert set(fixed_sequence(order, p_values, 0.025)) == expected


def test_no_hypothesis_is_none_rejected():
    assert holm({}, 0.025) == set() and fixed_sequence([], {}, 0.025) == []
