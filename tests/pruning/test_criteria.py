"""Criteria against independent computations."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian
from torch.nn import functional as F

from hf_lottery import config
from hf_lottery.pruning import criteria as scores
from hf_lottery.pruning.patterns import PATTERNS
from hf_lottery.pruning.wanda import input_norms


def test_every_criterion_and_pattern_of_the_config_is_there_and_no_other():
    assert set(scores.CRITERIA) == set(config.CRITERIA)
    assert set(PATTERNS) == set(config.PATTERNS)


def test_the_loss_of_grasp_divides_logits_by_the_temperature():
    torch.manual_seed(0)
    logits, classes, tokens = torch.randn(2, 5, 3), torch.tensor([0, 2]), torch.randint(3, (2, 5))
    of_classes = scores.tempered_loss(lambda labels: {"logits": logits[:, 0]}, 4.0)({"labels": classes})
    expected = -sum((logits[i, 0] / 4).log_softmax(0)[classes[i]] for i in range(2)) / 2
    torch.testing.assert_close(of_classes, expected)
    of_tokens = scores.tempered_loss(lambda labels: {"logits": logits}, 4.0)({"labels": tokens})
    expected = -sum((logits[i, j] / 4).log_softmax(0)[tokens[i, j + 1]] for i in range(2) for j in range(4)) / 8
    torch.testing.assert_close(of_tokens, expected)


# --- from weights alone ---


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


def test_criteria_of_two_points():
    start, end = {"w": torch.tensor([1.0, -2.0, 0.5])}, {"w": torch.tensor([-3.0, -1.0, 0.5], requires_grad=True)}
    assert scores.large_init(start)["w"].tolist() == [1.0, 2.0, 0.5]
    assert scores.magnitude_increase(end, start)["w"].tolist() == [2.0, -1.0, 0.0]
    assert scores.movement(end, start)["w"].tolist() == [4.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="the rewind point holds no 'w'"):
        scores.movement(end, {})


# --- from a loss ---


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.fixture
def problem():
    """A small network in float64, its weights, its loss at any temperature, and two batches."""
    torch.manual_seed(0)
    net = Net().double()
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    batches = [(torch.randn(5, 3).double(), torch.randint(2, (5,))) for _ in range(2)]

    def loss_at(temperature):
        return lambda batch: F.cross_entropy(net(batch[0]) / temperature, batch[1])

    return net, weights, loss_at, batches


def total_loss(net, batches, temperature=1.0):
    def of(weights):
        return sum(F.cross_entropy(functional_call(net, weights, (x,)) / temperature, y) for x, y in batches)

    return of


def test_snip_is_the_derivative_by_the_mask(problem):
    net, weights, loss_at, batches = problem
    loss = loss_at(1.0)
    found = scores.snip(weights, loss, batches)
    step = 1e-6
    with torch.no_grad():
        for name, weight in weights.items():
            expected = torch.zeros_like(weight)
            for index in range(weight.numel()):
                kept = weight.view(-1)[index].item()
                sides = []
                for factor in (1 + step, 1 - step):  # the entry of the mask, about 1
                    weight.view(-1)[index] = kept * factor
                    sides.append(sum(loss(batch) for batch in batches))
                weight.view(-1)[index] = kept
                expected.view(-1)[index] = (sides[0] - sides[1]) / (2 * step)
            torch.testing.assert_close(found[name], expected.abs(), rtol=1e-4, atol=1e-8)
    assert found["first.weight"].any() and not found["unused.weight"].any()
    assert all(p.grad is None for p in net.parameters())


def test_grasp_against_the_whole_hessian(problem):
    net, weights, loss_at, batches = problem
    found = scores.grasp(weights, loss_at(200.0), iter(batches))
    flat = {name: w.detach() for name, w in weights.items()}
    g = grad(total_loss(net, batches, 200.0))(flat)
    h = hessian(total_loss(net, batches, 200.0))(flat)
    for name, weight in flat.items():
        dims = list(range(2, 4))
        hg = sum(torch.tensordot(h[name][other], g[other], dims=[dims, [0, 1]]) for other in flat)
        torch.testing.assert_close(found[name], weight * hg)
    assert found["first.weight"].any()
    assert not scores.grasp(weights, loss_at(1.0), batches)["first.weight"].allclose(found["first.weight"])


def test_grasp_through_attention():
    torch.manual_seed(0)
    attention = nn.Linear(8, 24)

    def loss(batch):
        q, k, v = attention(batch).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return (F.scaled_dot_product_attention(q, k, v) / 200.0).square().mean()

    found = scores.grasp({"w": attention.weight}, loss, [torch.randn(2, 5, 8)])
    assert found["w"].isfinite().all() and found["w"].any()


@pytest.mark.parametrize("criterion", [scores.snip, scores.grasp])
def test_a_loss_without_a_batch(problem, criterion):
    _, weights, loss_at, _ = problem
    with pytest.raises(ValueError, match="there is no batch"):
        criterion(weights, loss_at(1.0), [])


# --- from activations ---


def test_wanda_of_a_linear_layer_and_a_convolution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    batches = [torch.randn(4, 2, 4, 4), torch.randn(1, 2, 4, 4)]
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    norms = input_norms(net, iter(list(weights)), net, batches)
    found = scores.wanda(weights, norms)
    images = torch.cat(batches)
    for channel in range(2):
        norm = math.sqrt(sum(float(value) ** 2 for value in images[:, channel].flatten()))
        torch.testing.assert_close(found["0.weight"][:, channel], net[0].weight[:, channel].abs().detach() * norm)
    flat = net[1](net[0](images)).detach()
    for feature in range(12):
        norm = math.sqrt(sum(float(value) ** 2 for value in flat[:, feature]))
        torch.testing.assert_close(found["2.weight"][:, feature], net[2].weight[:, feature].abs().detach() * norm)
    assert not net[0]._forward_pre_hooks


def test_wanda_where_there_are_no_activations():
    net = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2), nn.Bilinear(4, 4, 1))
    with pytest.raises(ValueError, match=r"no activations reached the layer of '0\.weight'"):
        input_norms(net, ["0.weight"], net[0], [])
    with pytest.raises(ValueError, match=r"'1\.weight' belongs to a Embedding"):
        input_norms(net, ["1.weight"], net[1], [])
    with pytest.raises(ValueError, match="belongs to a Bilinear"):
        input_norms(net, ["2.weight"], net[2], [])
