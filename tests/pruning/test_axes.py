"""Which dimension is the output: for every type of layer, autograd says which weights feed which output."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as parametrized_spectral_norm
from transformers.pytorch_utils import Conv1D

from hf_lottery import LotteryConfig, Mask
from hf_lottery.pruning.context import PruningContext
from hf_lottery.pruning.random_mask import random_mask_like
from hf_lottery.pruning.step import check_network, next_mask, score
from hf_lottery.pruning.targets import match_rates, prunable
from tests import tiny_lm
from tests.tiny import make_trainer

# a layer with 8 inputs and 12 outputs, how many dimensions follow the channels, the number of its groups
LAYERS = {
    "Linear": (lambda: nn.Linear(8, 12), None, 1),
    "a subclass of Linear": (lambda: NonDynamicallyQuantizableLinear(8, 12), None, 1),
    "Conv1D of GPT-2": (lambda: Conv1D(12, 8), None, 1),
    "Conv1d": (lambda: nn.Conv1d(8, 12, 3), 1, 1),
    "Conv2d": (lambda: nn.Conv2d(8, 12, (2, 3)), 2, 1),
    "Conv3d": (lambda: nn.Conv3d(8, 12, 2), 3, 1),
    "Conv2d in groups": (lambda: nn.Conv2d(8, 12, 2, groups=2), 2, 2),
    "Conv1d by channel": (lambda: nn.Conv1d(8, 16, 2, groups=8), 1, 8),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 12, 3), 1, 1),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 12, 2, stride=2), 2, 1),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(8, 12, 2), 3, 1),
    "ConvTranspose2d in groups": (lambda: nn.ConvTranspose2d(8, 12, 2, groups=2), 2, 2),
    "ConvTranspose1d by channel": (lambda: nn.ConvTranspose1d(8, 16, 2, groups=8), 1, 8),
}
RATE = 0.3


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def network(name):
    torch.manual_seed(0)
    make, spatial, groups = LAYERS[name]
    layer = make()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, 8) if spatial is None else torch.randn(3, 8, *[4] * spatial)
    return Net(layer), x, -1 if spatial is None else 1, groups


def context(model, config, mask=None, batches=list, rates=None):
    weights = prunable(model, config.target_modules, config.exclude_modules, config.prune_embeddings)
    rates = match_rates(config.pruning_rates, tuple(weights)) if rates is None else rates
    check_network(model, config, weights, rates)
    mask = Mask.ones(weights) if mask is None else mask
    return PruningContext(model, config, mask, weights, rates, dict, batches, None, 0)


def weights_of_outputs(model, x, dim):
    """(outputs, weights) bools: which entries of the weight an output depends on, by autograd."""
    weight = model.layer.weight
    totals = model(x).movedim(dim, 0).flatten(1).sum(1)
    gradients = [torch.autograd.grad(total, weight, retain_graph=True)[0] for total in totals]
    return torch.stack([gradient != 0 for gradient in gradients])


def weights_of_inputs(model, x, dim):
    """(inputs, weights) bools: which entries of the weight an input is multiplied by."""
    weight, found = model.layer.weight, []
    for i in range(8):
        alone = torch.zeros_like(x)
        alone.select(dim, i).copy_(x.select(dim, i))
        found.append(torch.autograd.grad(model(alone).pow(2).sum(), weight)[0] != 0)
    return torch.stack(found)


@pytest.mark.parametrize("name", LAYERS)
def test_a_neuron_is_all_weights_of_one_output_and_the_weakest_go(name):
    model, x, dim, _ = network(name)
    of_outputs = weights_of_outputs(model, x, dim)
    sizes = torch.stack([model.layer.weight.detach()[own].abs().mean() for own in of_outputs])
    gone = sizes.argsort()[: round(RATE * len(sizes))]
    kept = next_mask(context(model, LotteryConfig(pattern="neuron", pruning_rate=RATE)))["layer.weight"]
    assert torch.equal(~kept, of_outputs[gone].any(0))

    with torch.no_grad():
        model.layer.weight.mul_(kept)
        bias = model.layer.bias.view(-1, *[1] * (x.dim() - 2)) if dim == 1 else model.layer.bias
        outputs = (model(x) - bias).movedim(dim, 0).flatten(1)
    assert outputs.abs().amax(1).eq(0).nonzero().flatten().tolist() == sorted(gone.tolist())


@pytest.mark.parametrize("name", LAYERS)
def test_n_of_m_keeps_n_of_each_m_neighbouring_inputs_of_every_output(name):
    model, x, dim, groups = network(name)
    inputs = 8 // groups  # of an output
    config = LotteryConfig(pattern="2:4")
    if inputs % 4:
        with pytest.raises(
            ValueError, match=r"2:4 needs 4 to divide the input dimension of 'layer.weight', which is 1"
        ):
            context(model, config)
        return
    kept = next_mask(context(model, config))["layer.weight"]
    of_outputs, of_inputs = weights_of_outputs(model, x, dim), weights_of_inputs(model, x, dim)
    positions = kept.numel() // (len(of_outputs) * inputs)  # of the kernel
    for own in of_outputs:
        for four in of_inputs.split(4):
            shared = kept[own & four.any(0)]
            assert len(shared) in (0, 4 * positions) and shared.sum() == len(shared) // 2
    assert int(kept.sum()) * 2 == kept.numel()


@pytest.mark.parametrize("name", LAYERS)
def test_wanda_multiplies_each_weight_by_the_norm_of_the_input_it_is_for(name):
    model, x, dim, _ = network(name)
    given = context(model, LotteryConfig(criterion="wanda"), batches=lambda: [{"x": x}])
    scores, _ = score(given)
    norms = x.movedim(dim, 0).flatten(1).norm(dim=1)
    factors = scores["layer.weight"] / model.layer.weight.detach().abs()
    for norm, own in zip(norms, weights_of_inputs(model, x, dim), strict=True):
        torch.testing.assert_close(factors[own], norm.expand(int(own.sum())))


@pytest.mark.parametrize("name", LAYERS)
def test_the_random_mask_prunes_as_many_whole_outputs(name):
    model, x, dim, _ = network(name)
    config = LotteryConfig(pattern="neuron", pruning_rate=RATE)
    mask = next_mask(context(model, config))
    drawn = random_mask_like(mask, model, config, torch.Generator().manual_seed(1))
    assert drawn != mask and drawn.counts() == mask.counts()
    kept = torch.stack([drawn["layer.weight"][own].float().mean() for own in weights_of_outputs(model, x, dim)])
    assert set(kept.tolist()) == {0.0, 1.0} and int((kept == 0).sum()) == round(RATE * len(kept))


@pytest.mark.parametrize("name", [name for name, (_, _, groups) in LAYERS.items() if groups <= 2])
def test_the_random_mask_keeps_n_of_m_inputs(name):
    model, x, dim, _ = network(name)
    config = LotteryConfig(pattern="1:2")
    mask = next_mask(context(model, config))
    drawn = random_mask_like(mask, model, config, torch.Generator().manual_seed(1))["layer.weight"]
    assert not torch.equal(drawn, mask["layer.weight"])
    of_inputs = weights_of_inputs(model, x, dim)
    for own in weights_of_outputs(model, x, dim):
        for two in of_inputs.split(2):
            shared = drawn[own & two.any(0)]
            assert shared.sum() == len(shared) // 2


def test_convolutions_without_a_batch_have_their_channels_first():
    model, x, _, _ = network("Conv2d")
    scores, _ = score(context(model, LotteryConfig(criterion="wanda"), batches=lambda: [{"x": x[0]}]))
    norms = x[0].flatten(1).norm(dim=1)
    expected = model.layer.weight.detach().abs() * norms.view(1, -1, 1, 1)
    torch.testing.assert_close(scores["layer.weight"], expected)


# --- recurrent layers ---

RECURRENT = {
    "LSTM": (lambda: nn.LSTM(5, 10), 10),
    "LSTM of two layers and directions": (lambda: nn.LSTM(5, 10, num_layers=2, bidirectional=True), 20),
    "GRU": (lambda: nn.GRU(5, 10, bidirectional=True), 20),
    "RNN": (lambda: nn.RNN(5, 10), 10),
}


def states(layer, x):
    with torch.no_grad():
        return layer(x)[0].flatten(0, -2)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_neuron_is_its_row_of_every_gate(name):
    torch.manual_seed(0)
    make, width = RECURRENT[name]
    model = Net(make())
    weights = [n for n, p in model.named_parameters() if p.dim() == 2]
    config = LotteryConfig(pattern="neuron", pruning_rate=RATE, target_modules=weights)
    given = context(model, config)
    mask = next_mask(given)
    assert sorted(mask) == sorted(weights)
    drawn = random_mask_like(mask, model, config, torch.Generator().manual_seed(1))
    assert drawn != mask and drawn.counts() == mask.counts()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for each in (mask, drawn):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(before[n] * each[n] if n in each else before[n])
        one, two = states(model.layer, torch.randn(4, 3, 5)), states(model.layer, torch.randn(4, 3, 5))
        dead = (one - two).abs().amax(0) == 0  # they do not see the input, nor other neurons
        assert int(dead.sum()) == width // 10 * round(RATE * 10)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_neurons_of_a_recurrent_cell(cell):
    torch.manual_seed(0)
    model = Net(cell(8, 12))
    names = ["layer.weight_ih", "layer.weight_hh"]
    with torch.no_grad():
        for name, kept in next_mask(
            context(model, LotteryConfig(pattern="neuron", pruning_rate=0.25, target_modules=names))
        ).items():
            model.get_parameter(name).mul_(kept)
        one, two = (model(torch.randn(3, 8)) for _ in range(2))
    one, two = (state[0] if isinstance(state, tuple) else state for state in (one, two))
    assert int(((one - two).abs().amax(0) == 0).sum()) == 3


def test_two_of_four_of_a_recurrent_layer_lie_along_its_inputs():
    model = Net(nn.GRU(8, 12))
    config = LotteryConfig(pattern="2:4", target_modules=["layer.weight_ih_l0", "layer.weight_hh_l0"])
    for kept in next_mask(context(model, config)).values():
        assert (kept.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_the_weakest_recurrent_neurons_go():
    model = Net(nn.LSTM(4, 6, bias=False))
    with torch.no_grad():
        for weight in model.layer.parameters():
            weight.fill_(1.0)
            weight[[2, 8, 14, 20]] = 0.01  # input, forget, cell and output gate of neuron 2
    config = LotteryConfig(
        pattern="neuron", pruning_rate=0.2, target_modules=["layer.weight_ih_l0", "layer.weight_hh_l0"]
    )
    for kept in next_mask(context(model, config)).values():
        assert (~kept.any(1)).nonzero().flatten().tolist() == [2, 8, 14, 20] and kept.sum() == 20 * kept.shape[1]


def test_the_projection_of_an_lstm_is_a_linear_layer():
    torch.manual_seed(0)
    model = Net(nn.LSTM(5, 10, proj_size=6))
    weights = [n for n, p in model.named_parameters() if p.dim() == 2]
    config = LotteryConfig(pattern="neuron", pruning_rate=0.5, target_modules=weights)
    mask = next_mask(context(model, config))
    with torch.no_grad():
        for n, kept in mask.items():
            model.get_parameter(n).mul_(kept)
        (out, (_, one)), (_, (_, two)) = model(torch.randn(4, 3, 5)), model(torch.randn(4, 3, 5))
    assert int((out.flatten(0, 1).abs().amax(0) == 0).sum()) == 3
    assert int(((one - two).abs().amax((0, 1)) == 0).sum()) == 5


def test_recurrent_weights_are_pruned_together_or_not_at_all(tmp_path):
    model = Net(nn.GRU(4, 6))
    with pytest.raises(ValueError, match=r"a recurrent layer .* '.*ih_l0' is one and '.*hh_l0' is not: add it"):
        context(model, LotteryConfig(pattern="neuron", target_modules=["layer.weight_ih_l0"]))
    both = ["layer.weight_ih_l0", "layer.weight_hh_l0"]
    with pytest.raises(ValueError, match="pruning_rates differ"):
        context(model, LotteryConfig(pattern="neuron", target_modules=both, pruning_rates={both[0]: 0.1}))


# --- attention of torch, LoRA, spectral norm ---


@pytest.mark.parametrize("width", [8, 6])
def test_multihead_attentions_own_weights_have_outputs_in_rows(width):
    """With keys and values of another width it has three weights instead of one."""
    torch.manual_seed(0)
    model = Net(nn.MultiheadAttention(8, 2, kdim=width, vdim=width))
    mask = next_mask(context(model, LotteryConfig(pattern="neuron", pruning_rate=0.25)))
    assert len(mask) == (2 if width == 8 else 4)
    for name, kept in mask.items():
        rows = kept.any(1)
        assert torch.equal(rows, kept.all(1)), name
        assert int((~rows).sum()) == len(rows) // 4


@pytest.mark.parametrize("norm", [spectral_norm, parametrized_spectral_norm])
def test_spectral_norm_keeps_the_axes_of_its_layer(norm):
    torch.manual_seed(0)
    model = Net(norm(nn.ConvTranspose1d(4, 8, 2)))
    name = next(n for n, p in model.named_parameters() if p.dim() == 3)
    mask = next_mask(context(model, LotteryConfig(pattern="neuron", pruning_rate=0.25, target_modules=[name])))
    with torch.no_grad():
        model.get_parameter(name).mul_(mask[name])
        one, two = model(torch.randn(2, 4, 5)), model(torch.randn(2, 4, 5))
    assert int(((one - two).abs().amax((0, 2)) == 0).sum()) == 2


# --- what has no known axes ---


class Mixing(nn.Module):
    """A layer of somebody's own: nobody knows which dimension is its output."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 12))

    def forward(self, x):
        return x @ self.weight


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.norm, self.mixing = nn.Embedding(6, 12), nn.LayerNorm(12), Mixing()
        self.pair, self.classifier = nn.Bilinear(12, 12, 8), nn.Linear(12, 3)

    def forward(self, x, labels=None):
        logits = self.classifier(self.mixing(self.norm(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("pattern", ["neuron", "2:4"])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mixing", r"'mixing.weight', of shape \(12, 12\), .* but of a Mixing: name it in exclude_modules, or use"),
        ("norm", r"'norm.weight', of shape \(12,\), .* but of a LayerNorm"),
        ("pair", r"'pair.weight', of shape \(8, 12, 12\), .* but of a Bilinear"),
        ("classifier.bias", r"'classifier.bias', of shape \(3,\), .* but of a Linear"),
        ("tokens", r"'tokens.weight' of shape \(6, 12\) is the table of an Embedding, whose rows are tokens"),
    ],
)
def test_a_pattern_of_outputs_and_inputs_refuses_weights_of_unknown_layers(tmp_path, pattern, target, said):
    config = LotteryConfig(pattern=pattern, target_modules=[target])
    with pytest.raises(ValueError, match=said):  # when it is made, not after round 0
        make_trainer(tmp_path, Odd(), lottery_config=config)


@pytest.mark.parametrize("pattern", ["neuron", "3:4"])
def test_weights_of_unknown_layers_at_rate_0_stay_whole(tmp_path, pattern):
    config = LotteryConfig(
        pattern=pattern, target_modules=["mixing", "norm", "classifier"], pruning_rates={"mixing": 0, "norm": 0}
    )
    mask = make_trainer(tmp_path, Odd(), lottery_config=config).prune()
    assert mask["mixing.weight"].all() and mask["norm.weight"].all() and not mask["classifier.weight"].all()


def adapted():
    torch.manual_seed(0)
    config = LoraConfig(r=8, init_lora_weights=False, target_modules=["embed_tokens", "q_proj"])
    return get_peft_model(tiny_lm.model(tie_word_embeddings=False), config)


@pytest.mark.parametrize("pattern", ["neuron", "2:4"])
def test_an_adapters_a_and_b_have_outputs_in_rows_that_of_an_embedding_too(pattern):
    model = adapted()
    names = ["lora_A", "lora_B", "lora_embedding_A.default", "lora_embedding_B.default"]
    mask = next_mask(context(model, LotteryConfig(pattern=pattern, pruning_rate=0.25, target_modules=names)))
    assert {tuple(kept.shape) for kept in mask.values()} == {(8, 260), (8, 16), (16, 8)}
    for kept in mask.values():
        rows = kept.any(1)
        if pattern == "neuron":
            assert torch.equal(rows, kept.all(1)) and int(rows.sum()) == len(rows) * 3 // 4
        else:
            assert (kept.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_dead_outputs_of_an_embeddings_adapter_add_nothing():
    model = adapted()
    names = ["lora_embedding_B.default"]
    mask = next_mask(context(model, LotteryConfig(pattern="neuron", pruning_rate=0.25, target_modules=names)))
    layer = model.base_model.model.model.embed_tokens
    with torch.no_grad():
        for name, kept in mask.items():
            model.get_parameter(name).mul_(kept)
        added = layer(torch.arange(260)) - layer.base_layer(torch.arange(260))
    assert int((added == 0).all(0).sum()) == 4
