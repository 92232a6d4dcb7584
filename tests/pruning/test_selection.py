"""select and prune: exact counts, ties, scopes, and the density ladders of the papers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection import chunks, threshold, ties
from hf_lottery.pruning.selection.select import prune, select

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def oracle(scores, alive, count):
    """All (score, name, flat index) of alive weights sorted; the first `count` go."""
    rows = []
    for name, score in scores.items():
        values, kept = score.double().flatten().numpy(), alive[name].flatten().numpy()
        rows += [(value, name, index) for index, value in enumerate(values) if kept[index]]
    rows.sort()
    result = {name: alive[name].clone() for name in scores}
    for _, name, index in rows[:count]:
        result[name].view(-1)[index] = False
    return Mask(result)


@st.composite
def problems(draw, most=24):
    """A few small tensors of any dtypes, with many ties, zeros of both signs and infinities; a mask; a count."""
    value = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), 1e-7, -1e-7]),
        st.floats(-3, 3, width=16),
    )
    scores, alive = {}, {}
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)):
        shape = draw(st.sampled_from([(0,), (1,), (7,), (3, 5), (2, 3, 4), (most,)]))
        size = int(np.prod(shape))
        values = draw(st.lists(value, min_size=size, max_size=size))
        kept = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        scores[name] = torch.tensor(values).view(shape).to(draw(st.sampled_from(FLOATS)))
        alive[name] = torch.tensor(kept, dtype=torch.bool).view(shape)
    alive = Mask(alive)
    return scores, alive, draw(st.integers(0, alive.count()))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_select_equals_a_sort_by_score_name_and_index(problem):
    scores, alive, count = problem
    before = {name: score.clone() for name, score in scores.items()}
    kept = select(scores, alive, count)
    assert kept == oracle(scores, alive, count)
    assert kept.count() == alive.count() - count
    assert (kept & alive) == kept
    assert all(torch.equal(before[name], score) for name, score in scores.items())


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_key_is_the_same_as_scores_made_before(problem):
    scores, alive, count = problem
    assert select(scores, alive, count, key=torch.abs) == select({n: s.abs() for n, s in scores.items()}, alive, count)


@pytest.fixture
def as_if_large(monkeypatch):
    """Bounds so low that small tensors take the ways of large ones: samples, several passes, runs, threads."""
    monkeypatch.setattr(chunks, "CPU_CHUNK", 8)
    monkeypatch.setattr(threshold, "_SAMPLE_AT_ONCE", 8)
    monkeypatch.setattr(threshold, "_COUNT_ALL", 20)
    monkeypatch.setattr(threshold, "_SAMPLE", 12)
    monkeypatch.setattr(threshold, "_BINS", 5)
    monkeypatch.setattr(ties, "_BINS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems(most=200))
def test_the_ways_of_large_tensors_on_small_ones(as_if_large, problem):
    scores, alive, count = problem
    assert select(scores, alive, count) == oracle(scores, alive, count)


def by_stable_sort(score, count):
    keep = np.ones(score.numel(), dtype=bool)
    keep[np.argsort(score.flatten().double().numpy(), kind="stable")[:count]] = False
    return torch.from_numpy(keep).view(score.shape)


@pytest.mark.parametrize(
    "dtype, share", [*[(dtype, 0.2) for dtype in FLOATS], (torch.float32, 1e-6), (torch.bfloat16, 0.999)]
)
def test_sizes_that_are_sampled_and_read_by_threads(dtype, share):
    generator = torch.Generator().manual_seed(3)
    score = torch.randn(1100, 1000, generator=generator).to(dtype)
    count = round(share * score.numel())
    assert torch.equal(select({"w": score}, Mask.ones({"w": score}), count)["w"], by_stable_sort(score, count))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: torch.full((n,), -2.5),  # nothing but ties
        lambda n: torch.arange(n) // (n // 3) * 1.0,  # three values
        lambda n: 1 + torch.arange(n).flip(0) * 2.0**-23,  # neighbouring bit patterns, in one bin of the sample
        lambda n: torch.cat([torch.zeros(n - 5), torch.tensor([-1.0, 1, float("inf"), -float("inf"), -0.0])]),
        lambda n: (
            torch.logspace(-40, 38, n) * torch.tensor([1.0, -1.0]).repeat(n // 2)
        ),  # subnormal to huge, both signs
    ],
)
@pytest.mark.parametrize("count", [1, 300_001, 1_099_998])
def test_scores_that_a_sample_tells_little_about(make, count):
    score = make(1_100_000)
    assert torch.equal(select({"w": score}, Mask.ones({"w": score}), count)["w"], by_stable_sort(score, count))


def test_a_sample_that_misses_costs_passes_and_not_exactness(monkeypatch):
    score = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(threshold, "_COUNT_ALL", 0)
    for wrong in [(0, 5), (2**30, 2**30 + 77), (-(2**31) + 2**24, -(2**30))]:
        monkeypatch.setattr(threshold, "_guess", lambda *_, wrong=wrong: wrong)
        kept = select({"w": score}, Mask.ones({"w": score}), 12_345)
        assert torch.equal(kept["w"], by_stable_sort(score, 12_345))


def test_scores_may_be_made_when_they_are_asked_for():
    class Lazy(dict):
        def __getitem__(self, name):
            return super().__getitem__(name).abs()

    weights = {"a": torch.randn(40, 3), "b": torch.randn(50)}
    alive = Mask.ones(weights)
    assert select(Lazy(weights), alive, 77) == select(weights, alive, 77, key=torch.abs)


def test_inside_inference_mode():
    with torch.inference_mode():
        score = {"w": torch.randn(600, 1000)}
        assert select(score, Mask.ones(score), 1000).count() == 599_000


def test_parameters_that_need_gradients():
    weight = {"w": torch.nn.Parameter(torch.tensor([3.0, -1.0, 2.0]))}
    kept = select(weight, Mask.ones(weight), 1, key=torch.abs)
    assert kept["w"].tolist() == [True, False, True] and weight["w"].grad is None


def test_the_worked_example_of_the_tutorial():
    weight = {"w": torch.tensor([[0.1, -0.5, 0.3], [-0.2, 0.7, -0.4], [0.6, -0.1, 0.8]])}
    once = prune(weight, Mask.ones(weight), 0.4, key=torch.abs)
    assert weight["w"][once["w"]].abs().sort().values.tolist() == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    twice = prune(weight, once, 0.4, key=torch.abs)
    assert weight["w"][twice["w"]].abs().sort().values.tolist() == pytest.approx([0.6, 0.7, 0.8])


def test_layer_and_global_scope_differ_as_they_should():
    scores = {"big": torch.arange(10.0) + 100, "small": torch.arange(10.0)}
    alive = Mask.ones(scores)
    assert prune(scores, alive, 0.5, scope="layer").counts() == {"big": (5, 10), "small": (5, 10)}
    assert prune(scores, alive, 0.5, scope="global").counts() == {"big": (10, 10), "small": (0, 10)}


def test_tensors_with_their_own_rate_are_groups_of_their_own():
    scores = {
        "a": torch.arange(10.0),
        "b": torch.arange(10.0) + 5,
        "head": torch.arange(10.0),
        "fixed": torch.zeros(4),
    }
    kept = prune(scores, Mask.ones(scores), 0.4, rates={"head": 0.2, "fixed": 0.0}, scope="global")
    assert kept["head"].sum() == 8 and kept["fixed"].all()
    assert kept["a"].sum() + kept["b"].sum() == 12
    assert kept["a"].sum() < kept["b"].sum()


def test_rounding_is_over_the_group():
    scores = {str(index): torch.rand(3) for index in range(10)}
    alive = Mask.ones(scores)
    assert prune(scores, alive, 0.1, scope="layer").count() == 30  # round(0.3) = 0 of every tensor
    assert prune(scores, alive, 0.1, scope="global").count() == 27


def test_prune_keeps_the_order_of_names():
    scores = {"b": torch.rand(3), "a": torch.rand(3)}
    assert list(prune(scores, Mask.ones(scores), 0.5)) == ["b", "a"]


def test_scores_that_are_not_contiguous():
    for score in [torch.rand(6, 8).t(), torch.rand(7, 400, 300).permute(1, 2, 0), torch.rand(90_000, 3)[:, 1]]:
        alive = Mask({"w": torch.rand(score.shape) > 0.3})
        count = alive.count() // 3
        assert select({"w": score}, alive, count) == select({"w": score.contiguous()}, alive, count)


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_out_of_range(count):
    scores = {"w": torch.rand(4)}
    with pytest.raises(ValueError, match=rf"{count} weights.*3 are alive"):
        select(scores, Mask({"w": torch.tensor([True, True, False, True])}), count)


def test_nan_names_the_tensor():
    scores = {"fine": torch.rand(4), "broken": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match="'broken' is NaN"):
        select(scores, Mask.ones(scores), 1)


def test_nan_where_nothing_is_alive_does_not_matter():
    scores = {"w": torch.tensor([1.0, float("nan"), 2.0])}
    kept = select(scores, Mask({"w": torch.tensor([True, False, True])}), 1)
    assert kept["w"].tolist() == [False, False, True]


def test_names_and_shapes_must_agree():
    alive = Mask.ones({"w": torch.rand(4)})
    with pytest.raises(ValueError, match="'v' is in the scores but not in the mask"):
        select({"w": torch.rand(4), "v": torch.rand(1)}, alive, 1)
    with pytest.raises(ValueError, match="'w' is in the mask but not in the scores"):
        select({}, alive, 0)
    with pytest.raises(ValueError, match=r"'w' have shape \(2, 2\)"):
        select({"w": torch.rand(2, 2)}, alive, 1)
    with pytest.raises(ValueError, match=r"dtype torch.int64"):
        select({"w": torch.arange(4)}, alive, 1)


def test_rates_and_scopes_out_of_range():
    scores = {"w": torch.rand(4)}
    alive = Mask.ones(scores)
    with pytest.raises(ValueError, match=r"'w' is 1\.5"):
        prune(scores, alive, 1.5)
    with pytest.raises(ValueError, match="'v', which the mask does not have"):
        prune(scores, alive, 0.5, rates={"v": 0.1})
    with pytest.raises(ValueError, match="scope is 'world'"):
        prune(scores, alive, 0.5, scope="world")


def conv(*sizes):
    return [(out, into, 3, 3) for into, out in pairwise(sizes)]


def linear(*sizes):
    return [(out, into) for into, out in pairwise(sizes)]


RESNET = conv(3, *[16] * 7, *[32] * 6, *[64] * 6)
VGG = conv(3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
LADDERS = {
    # convolutions, linear layers, rate of convolutions, of linear layers, of the output, scope, {round: P_m in %}
    "lenet-300-100": (
        [],
        linear(784, 300, 100, 10),
        (0.2, 0.2, 0.1, "layer"),
        {1: 80.04, 2: 64.06, 3: 51.28, 5: 32.87, 7: 21.07, 9: 13.52, 12: 6.95, 15: 3.58, 16: 2.87, 18: 1.85, 20: 1.19,
         24: 0.50},
    ),
    "conv-2": (
        conv(3, 64, 64),
        linear(64 * 16 * 16, 256, 256, 10),
        (0.1, 0.2, 0.1, "layer"),
        {3: 51.41, 6: 26.47, 9: 13.66, 11: 8.81, 12: 7.08, 14: 4.57, 15: 3.68, 18: 1.93, 21: 1.02},
    ),
    "conv-4": (
        conv(3, 64, 64, 128, 128),
        linear(128 * 8 * 8, 256, 256, 10),
        (0.1, 0.2, 0.1, "layer"),
        {3: 53.55, 7: 23.88, 11: 11.06, 12: 9.18, 15: 5.37, 18: 3.23, 21: 2.01, 24: 1.28},
    ),
    "conv-6": (
        conv(3, 64, 64, 128, 128, 256, 256),
        linear(256 * 4 * 4, 256, 256, 10),
        (0.15, 0.2, 0.1, "layer"),
        {7: 26.61, 10: 15.29, 11: 12.74, 15: 6.18, 20: 2.54, 24: 1.27},
    ),
    "resnet-18": (
        RESNET,
        [(32, 16, 1, 1), (64, 32, 1, 1), (10, 64)],
        (0.2, 0.0, 0.0, "global"),
        {4: 41.66, 6: 27.09, 7: 21.91, 10: 11.79, 15: 4.66, 20: 2.32},
    ),
    "vgg-19": (VGG, [(10, 512)], (0.2, 0.0, 0.0, "global"), {12: 6.90, 15: 3.54, 19: 1.47, 24: 0.50}),
}  # fmt: skip


@pytest.mark.parametrize("net", LADDERS)
def test_the_density_ladder_of_the_paper(net):
    """Frankle & Carbin's P_m by round (v5, quoted through the text and Figure 2's table of weights and rates)."""
    convolutions, linears, (conv_rate, linear_rate, output_rate, scope), ladder = LADDERS[net]
    shapes = {f"{index:02}": shape for index, shape in enumerate(convolutions + linears)}
    rates = dict(zip(shapes, [conv_rate] * len(convolutions) + [linear_rate] * len(linears), strict=True))
    rates[f"{len(shapes) - 1:02}"] = output_rate
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    mask = Mask.ones(scores)
    # what exact arithmetic keeps: for every tensor, or for all tensors of a global scope together
    groups = [[n] for n in shapes] if scope == "layer" else [[n for n in shapes if rates[n] > 0]]
    for round_ in range(1, max(ladder) + 1):
        before = mask.counts()
        mask = prune(scores, mask, 0.2, rates=rates, scope=scope)
        after = mask.counts()
        for group in groups:
            left = sum(before[name][0] for name in group)
            removed = left - sum(after[name][0] for name in group)
            assert removed == round(rates[group[0]] * left)
            ideal = sum(after[name][1] for name in group) * (1 - rates[group[0]]) ** round_
            assert abs(left - removed - ideal) < 3  # roundings of earlier rounds decay by (1 − rate) every round
        if round_ in ladder:
            assert 100 * mask.density() == pytest.approx(ladder[round_], abs=0.0051)
