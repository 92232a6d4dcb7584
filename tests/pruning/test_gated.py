"""Gated MLPs: a neuron goes from gate, up and down together, and the rest is the physically smaller network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    GemmaConfig,
    GemmaModel,
    GlmConfig,
    GlmModel,
    Lfm2Config,
    Lfm2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    MoonshineConfig,
    MoonshineModel,
    Phi3Config,
    Phi3Model,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5EncoderModel,
)

from hf_lottery import LotteryConfig, Mask
from hf_lottery.pruning.gated import gated_mlps
from hf_lottery.pruning.groups import prune_neurons
from tests import tiny_lm
from tests.tiny import make_trainer

NEURONS = 24
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": NEURONS, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
T5_SIZES = {
    "vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": NEURONS, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
LLAMAS = ("gate_proj", "up_proj", "down_proj")

# a network, how the modules of its gated MLPs end, and (gate, up, down) or (gate and up, down) in them
FAMILIES = {
    "llama": (lambda: LlamaModel(LlamaConfig(**GROUPED)), "mlp", LLAMAS),
    "llama with biases": (lambda: LlamaModel(LlamaConfig(**GROUPED, mlp_bias=True)), "mlp", LLAMAS),
    "qwen2": (lambda: Qwen2Model(Qwen2Config(**GROUPED)), "mlp", LLAMAS),
    "mistral": (lambda: MistralModel(MistralConfig(**GROUPED)), "mlp", LLAMAS),
    "gemma": (lambda: GemmaModel(GemmaConfig(**GROUPED, head_dim=4)), "mlp", LLAMAS),
    "t5": (
        lambda: T5EncoderModel(T5Config(**T5_SIZES)),
        "DenseReluDense",
        ("wi_0", "wi_1", "wo"),
    ),
    "phi3": (lambda: Phi3Model(Phi3Config(**GROUPED)), "mlp", ("gate_up_proj", "down_proj")),
    "glm": (lambda: GlmModel(GlmConfig(**GROUPED, head_dim=4)), "mlp", ("gate_up_proj", "down_proj")),
    "modernbert": (
        lambda: ModernBertModel(ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2)),
        "mlp",
        ("Wi", "Wo"),
    ),
    "lfm2": (
        lambda: Lfm2Model(
            Lfm2Config(**GROUPED, layer_types=["full_attention", "conv"], block_auto_adjust_ff_dim=False)
        ),
        "feed_forward",
        ("w1", "w3", "w2"),
    ),
}


def network(family):
    torch.manual_seed(0)
    make, ending, names = FAMILIES[family]
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    mlps = [module for name, module in model.named_modules() if name.endswith(ending)]
    assert len(mlps) == 2
    return model, mlps, names


def output(model):
    with torch.no_grad():
        return model(torch.arange(10).view(2, 5)).last_hidden_state


def neuron_rows(weight):
    """A weight's neurons (neurons, weights): of gate and up in one, both rows of each."""
    return weight if len(weight) == NEURONS else torch.cat([weight[:NEURONS], weight[NEURONS:]], 1)


def whole_neurons(mlp, names):
    """All weights of each neuron: (neurons, weights)."""
    *inner, down = (mlp.get_submodule(name).weight.detach() for name in names)
    return torch.cat([*map(neuron_rows, inner), down.t()], 1)


def shrink(mlp, names, kept):
    """Make the MLP the smaller one that has the neurons `kept` alone."""
    *inner, down = names
    for name in inner:
        layer = mlp.get_submodule(name)
        index = kept if layer.out_features == NEURONS else torch.cat([kept, kept + NEURONS])
        smaller = nn.Linear(layer.in_features, len(index), layer.bias is not None)
        smaller.weight.data = layer.weight.data[index]
        if layer.bias is not None:
            smaller.bias.data = layer.bias.data[index]
        setattr(mlp, name, smaller)
    layer = mlp.get_submodule(down)
    smaller = nn.Linear(len(kept), layer.out_features, layer.bias is not None)
    smaller.weight.data = layer.weight.data[:, kept]
    if layer.bias is not None:
        smaller.bias.data = layer.bias.data
    setattr(mlp, down, smaller)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_network_computes_what_the_smaller_one_does(family):
    model, mlps, names = network(family)
    smaller = copy.deepcopy(model)
    ending = FAMILIES[family][1]
    weights = {n: p for n, p in model.named_parameters() if any(f"{ending}.{name}.weight" in n for name in names)}
    kept = prune_neurons(weights, Mask.ones(weights), 0.3, key=torch.abs, mlps=gated_mlps(model))
    assert set(kept) == set(weights)

    best = [whole_neurons(mlp, names).abs().mean(1).argsort()[7:].sort().values for mlp in mlps]  # round(0.3 · 24) = 7
    for mlp, left in zip([m for n, m in smaller.named_modules() if n.endswith(ending)], best, strict=True):
        shrink(mlp, names, left)
    with torch.no_grad():
        for name, mask in kept.items():
            weights[name].mul_(mask)
    for mlp, left in zip(mlps, best, strict=True):
        neurons = whole_neurons(mlp, names) != 0
        assert torch.equal(neurons.any(1), neurons.all(1))  # live gate rows, live up rows, live columns of down
        assert neurons.any(1).nonzero().flatten().tolist() == left.tolist()
    torch.testing.assert_close(output(model), output(smaller))


def test_gated_mlps_are_found_in_vision_and_speech_models_and_nowhere_else():
    vision = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, use_swiglu_ffn=True, image_size=14, patch_size=7
    )
    speech = MoonshineConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, encoder_num_hidden_layers=1, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4,
    )  # fmt: skip
    assert list(gated_mlps(Dinov2Model(vision))) == ["encoder.layer.0.mlp", "encoder.layer.1.mlp"]
    assert list(gated_mlps(MoonshineModel(speech))) == ["decoder.layers.0.mlp", "decoder.layers.1.mlp"]
    assert gated_mlps(T5EncoderModel(T5Config(vocab_size=8, d_model=8, d_ff=8, num_layers=1, num_heads=2))) == {}


@pytest.mark.parametrize("scope", ["layer", "global", "erk", "uniform"])
def test_a_search_prunes_neurons_by_rate_and_scope_round_after_round(tmp_path, scope):
    config = LotteryConfig(pattern="neuron", pruning_rate=0.3, scope=scope, target_modules=["mlp"])
    trainer = make_trainer(tmp_path, tiny_lm.model(), lottery_config=config)
    left = 2 * NEURONS
    for _ in range(3):
        mask = trainer.prune()
        of_layers = []
        for layer in range(2):
            gate, up, down = (mask[f"model.layers.{layer}.mlp.{name}.weight"] for name in LLAMAS)
            assert torch.equal(gate, up) and torch.equal(gate.t(), down)
            assert torch.equal(gate.any(1), gate.all(1))
            of_layers.append(int(gate.any(1).sum()))
        if scope == "layer":
            left = 2 * (left // 2 - round(0.3 * (left // 2)))
            assert of_layers[0] == of_layers[1]
        else:
            left -= round(0.3 * left)
        assert sum(of_layers) == left


def test_a_neuron_that_does_not_compute_any_more_is_not_counted_and_goes():
    model, _, _ = network("llama")
    weights = {n: p for n, p in model.named_parameters() if "layers.0.mlp" in n}
    alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    alive["layers.0.mlp.gate_proj.weight"][:4] = False  # such as by a mask of single weights
    kept = prune_neurons(weights, Mask(alive), 0.5, key=torch.abs, mlps=gated_mlps(model))
    rows = kept["layers.0.mlp.up_proj.weight"].any(1)
    assert not rows[:4].any() and rows.sum() == 10
    assert all(
        torch.equal(neuron_rows(kept[name] if "down" not in name else kept[name].t()).any(1), rows) for name in kept
    )


def test_other_layers_lose_rows_as_before(tmp_path):
    config = LotteryConfig(pattern="neuron", pruning_rate=0.25)
    mask = make_trainer(tmp_path, tiny_lm.model(), lottery_config=config).prune()
    for name, kept in mask.items():
        rows = kept.any(1)
        if "down_proj" in name:
            assert rows.all()
        else:
            assert torch.equal(rows, kept.all(1)) and int(rows.sum()) == len(rows) - round(0.25 * len(rows))


def test_an_mlp_is_pruned_whole_or_not_at_all(tmp_path):
    for config, said in (
        ({"target_modules": ["gate_proj", "up_proj"]}, r"'model.layers.0.mlp.down_proj.weight' is not: add it to"),
        ({"exclude_modules": [r"up_proj"]}, "up_proj.weight' is not: add it to target_modules"),
        ({"pruning_rates": {"down_proj": 0.0}}, "pruning_rates differ among .*give them the same rate"),
    ):
        with pytest.raises(ValueError, match=said):  # when it is made, not after round 0
            make_trainer(tmp_path, tiny_lm.model(), lottery_config=LotteryConfig(pattern="neuron", **config))
    for config in (
        {"exclude_modules": ["mlp"]},
        {"target_modules": ["q_proj", "layers.1.mlp"]},
        {"pruning_rates": {"mlp": 0.5}},
        {"pruning_rates": {"up_proj": 0.2}, "pruning_rate": 0.2},
    ):
        trainer = make_trainer(tmp_path, tiny_lm.model(), lottery_config=LotteryConfig(pattern="neuron", **config))
        mask = trainer.prune()
        for layer in range(2):
            found = {name.rpartition(".mlp.")[2] for name in mask if f"layers.{layer}.mlp" in name}
            assert len(found) in (0, 3)
    assert mask["model.layers.0.mlp.up_proj.weight"].any(1).sum() == NEURONS - round(0.2 * NEURONS)


def test_infinite_scores_of_both_signs_have_no_mean():
    model, _, _ = network("llama")
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if "layers.0.mlp" in n}
    weights["layers.0.mlp.up_proj.weight"][5, 0] = math.inf
    weights["layers.0.mlp.down_proj.weight"][0, 5] = -math.inf
    with pytest.raises(ValueError, match=r"neuron 5 of 'layers.0.mlp.gate_proj.weight' has scores of inf and of -inf"):
        prune_neurons(weights, Mask.ones(weights), 0.5, mlps=gated_mlps(model))
    assert prune_neurons(weights, Mask.ones(weights), 0.5, key=torch.abs, mlps=gated_mlps(model)).density() == 0.5
