"""SynFlow against paths counted by hand, its own schedule, and the collapse that it exists to avoid."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from hf_lottery.mask import Mask
from hf_lottery.models.lenet import LeNetConfig
from hf_lottery.pruning.selection.select import prune
from hf_lottery.pruning.synflow import synaptic_flow, synflow


def weights_of(net):
    return {name: p for name, p in net.named_parameters() if name.endswith("weight")}


class Wide(nn.Module):
    """Takes its input by name, as transformers' models do."""

    def __init__(self, *sizes, bias=False):
        super().__init__()
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, bias), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1], nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)


def test_flow_is_the_sum_over_paths():
    torch.manual_seed(0)
    net = Wide(2, 3, 2)
    weights = weights_of(net)
    before = {name: w.detach().clone() for name, w in weights.items()}
    alive = Mask({name: torch.rand(w.shape) > 0.2 for name, w in weights.items()})
    found = synaptic_flow(net, {"x": torch.ones(1, 2)}, weights, alive)
    a, b = ((w.detach().double().abs() * alive[name]) for name, w in weights.items())
    expected = [torch.zeros(3, 2), torch.zeros(2, 3)]
    for i in range(2):
        for j in range(3):
            for k in range(2):
                path = float(a[j, i] * b[k, j])
                expected[0][j, i] += path
                expected[1][k, j] += path
    for name, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(found[name].float(), value)
    assert net.training and all(torch.equal(w, before[name]) and w.grad is None for name, w in weights.items())


def test_scores_give_the_mask_of_the_steps():
    """A plain loop of score and prune, under masks that only shrink, must end at the mask that the scores give."""
    torch.manual_seed(0)
    net = Wide(6, 20, 20, 4)
    weights, ones = weights_of(net), {"x": torch.ones(1, 6)}
    alive = Mask.ones(weights)
    scores = synflow(weights, net, ones, alive, rate=0.9, iterations=10)
    found = prune(scores, alive, 0.9, scope="global")

    mask, total = alive, alive.count()
    for step in range(1, 11):
        flow = synaptic_flow(net, ones, weights, mask)
        flat = torch.cat(
            [flow[name].where(mask[name], torch.tensor(-1.0).double()).flatten() for name in sorted(flow)]
        )
        keep = torch.ones(len(flat), dtype=torch.bool)
        keep[flat.argsort(stable=True)[: round(total * (1 - 0.1 ** (step / 10)))]] = False
        parts = keep.split([flow[name].numel() for name in sorted(flow)])
        mask = Mask({name: part.view_as(flow[name]) for name, part in zip(sorted(flow), parts, strict=True)})
    assert found == mask
    assert found.count() == total - round(0.9 * total)


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_pruning_goes_on_from_a_mask_and_by_the_rates(scope):
    torch.manual_seed(0)
    net = Wide(6, 12, 4)
    weights, ones = weights_of(net), {"x": torch.ones(1, 6)}
    alive = prune(weights, Mask.ones(weights), 0.3, key=torch.abs)
    last = list(weights)[-1]
    scores = synflow(weights, net, ones, alive, 0.5, {last: 0.1}, scope, iterations=7)
    kept = prune(scores, alive, 0.5, {last: 0.1}, scope)
    assert (kept & alive) == kept
    for name, mask in alive.items():
        left = int(mask.sum())
        assert int(kept[name].sum()) == left - round((0.1 if name == last else 0.5) * left)


def test_no_layer_collapses_where_one_step_would():
    """Layers of very different width: at a high compression one-step scores empty the widest, many steps do not."""
    torch.manual_seed(1)
    net = Wide(10, 200, 200, 10)
    weights, ones = weights_of(net), {"x": torch.ones(1, 10)}
    alive = Mask.ones(weights)
    rate = 1 - 60 / alive.count()
    for iterations, collapsed in ((1, True), (100, False)):
        scores = synflow(weights, net, ones, alive, rate, iterations=iterations)
        kept = prune(scores, alive, rate, scope="global")
        flow = sum(float(f.sum()) for f in synaptic_flow(net, ones, weights, kept).values())
        assert (flow == 0) == collapsed, iterations


def test_a_model_of_transformers():
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_config(LeNetConfig(hidden_sizes=[8, 6]))
    weights = weights_of(model)
    found = synaptic_flow(model, {"pixel_values": torch.ones(1, 1, 28, 28)}, weights, Mask.ones(weights))
    # what flows through every layer is the same: the layers' sums of scores are equal (Tanaka et al., Theorem 1)
    sums = [float(score.sum()) for score in found.values()]
    assert sums == pytest.approx([sums[0]] * len(sums))
