"""Criteria that look at data, in two real processes: the scores of all examples, whoever holds them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp
from torch.nn import functional as F

from tests import tiny_lm
from tests.pruning.calibrated import CRITERIA, NETWORKS, images, lenet, texts


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(network, criterion, processes, rank) -> scores and mask."""
    folder = tmp_path_factory.mktemp("calibrated")
    subprocess.run([sys.executable, "-m", "tests.pruning.calibrated", str(folder), "1", "2"], check=True)
    return lambda *which: torch.load(folder / ("-".join(map(str, which)) + ".pt"))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("network", NETWORKS)
def test_two_processes_score_as_one_does(found, network, criterion):
    one, *two = (found(network, criterion, *which) for which in ((1, 0), (2, 0), (2, 1)))
    for name, scores in one["scores"].items():
        assert scores.any()
        assert torch.equal(two[0]["scores"][name], two[1]["scores"][name])
        scale = 2**0.5 if (network, criterion) == ("norm", "wanda") else 1.0  # both have looked at all examples
        close = {"rtol": 2e-4, "atol": 1e-5 * float(scores.abs().max())}
        torch.testing.assert_close(two[0]["scores"][name], scores * scale, **close)
        for other in two:
            assert torch.equal(other["mask"][name], one["mask"][name])


def weights_of(scores, model):
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().double() for name in scores}


def proportional(scores, expected):
    """Compares all tensors at one common scale."""
    norm, other = (torch.cat([t[name].double().flatten() for name in expected]).norm() for t in (scores, expected))
    for name, value in expected.items():
        torch.testing.assert_close(scores[name].double() / norm, value / other, rtol=1e-3, atol=1e-6)


def loss_of_images(temperature):
    model = lenet().double()
    x, y = images()

    def loss(weights):
        logits = functional_call(model, weights, kwargs={"pixel_values": x.double()})["logits"]
        return F.cross_entropy(logits / temperature, y)

    return loss


def loss_of_texts(temperature):
    """The mean over all labels of the log-likelihood at temperature; every text alone, without padding or batches."""
    model = tiny_lm.model().double()

    def loss(weights):
        total, count = 0.0, 0
        for row in texts():
            logits = functional_call(model, weights, kwargs={"input_ids": torch.tensor([row["input_ids"]])})["logits"]
            for position, label in enumerate(row["labels"][1:]):
                if label != -100:
                    total = total - (logits[0, position] / temperature).log_softmax(-1)[label]
                    count += 1
        return total / count

    return loss


def test_snip_of_images_is_that_of_one_pass_over_all_of_them(found):
    scores = found("images", "snip", 2, 0)["scores"]
    weights = weights_of(scores, lenet())
    gradients = grad(loss_of_images(1.0))(weights)
    proportional(scores, {name: (weights[name] * gradients[name]).abs() for name in weights})


def test_snip_of_texts_is_that_of_every_text_alone(found):
    scores = found("texts", "snip", 2, 0)["scores"]
    weights = weights_of(scores, tiny_lm.model())
    gradients = grad(loss_of_texts(1.0))(weights)
    proportional(scores, {name: (weights[name] * gradients[name]).abs() for name in weights})


def test_grasp_of_images_is_by_the_whole_hessian(found):
    scores = found("images", "grasp", 2, 0)["scores"]
    weights = weights_of(scores, lenet())
    g, h = grad(loss_of_images(200.0))(weights), hessian(loss_of_images(200.0))(weights)
    products = {n: sum(torch.tensordot(h[n][o], g[o], dims=[[2, 3], [0, 1]]) for o in weights) for n in weights}
    proportional(scores, {name: weights[name] * products[name] for name in weights})


def test_grasp_of_texts_is_the_derivative_of_the_gradient_along_itself(found):
    scores = found("texts", "grasp", 2, 0)["scores"]
    weights = weights_of(scores, tiny_lm.model())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradient = grad(loss_of_texts(200.0))
        _, products = jvp(gradient, (weights,), (gradient(weights),))
    proportional(scores, {name: weights[name] * products[name] for name in weights})


def test_wanda_of_texts_is_by_the_tokens_of_every_text_alone(found):
    model = tiny_lm.model()
    scores = found("texts", "wanda", 2, 0)["scores"]
    squares = {}

    def note(name):
        return lambda _, inputs: squares.setdefault(name, []).append(inputs[0].double().flatten(0, -2).square().sum(0))

    for name in scores:
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(note(name))
    with torch.no_grad():
        for row in texts():
            model(torch.tensor([row["input_ids"]]))
    for name, weight in weights_of(scores, model).items():
        expected = weight.abs() * torch.stack(squares[name]).sum(0).sqrt()
        torch.testing.assert_close(scores[name].double(), expected, rtol=1e-4, atol=1e-6)
