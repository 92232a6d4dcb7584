"""N:M, neurons and heads: whole groups go, exactly as many as the rate says, the worst first."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ConvBertConfig,
    ConvBertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)

from hf_lottery.mask import Mask
from hf_lottery.pruning.attention import attention_heads
from hf_lottery.pruning.groups import neuron_scores, prune_n_of_m, prune_neurons
from hf_lottery.pruning.heads import prune_heads

# --- N:M ---


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**31), st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 8)]), st.sampled_from([(5, 8), (2, 16, 3, 3)])
)
def test_n_of_m_against_a_loop(seed, pattern, shape):
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(-4, 4, shape, generator=generator).float()  # ties
    alive = torch.rand(shape, generator=generator) > 0.2
    kept = prune_n_of_m({"w": score}, Mask({"w": alive}), n, m)["w"]
    rows = np.moveaxis(score.numpy(), 1, -1).reshape(-1, m)
    living = np.moveaxis(alive.numpy(), 1, -1).reshape(-1, m)
    found = np.moveaxis(kept.numpy(), 1, -1).reshape(-1, m)
    for row, lives, keeps in zip(rows, living, found, strict=True):
        best = sorted((i for i in range(m) if lives[i]), key=lambda i: (row[i], i))[-n:]
        assert sorted(best) == np.flatnonzero(keeps).tolist()


def test_n_of_m_keeps_an_alive_weight_of_score_minus_infinity_before_a_pruned_one():
    alive = Mask({"w": torch.tensor([[True, False, True, False]])})
    scores = {"w": torch.tensor([[-torch.inf, 1.0, torch.inf, 2.0]])}
    assert prune_n_of_m(scores, alive, 2, 4) == alive


def test_n_of_m_of_a_dense_layer_keeps_exactly_that_share():
    weight = {"w": torch.randn(32, 64).bfloat16()}
    kept = prune_n_of_m(weight, Mask.ones(weight), 2, 4, key=torch.abs)
    assert (kept["w"].view(32, 16, 4).sum(-1) == 2).all()
    assert torch.equal(prune_n_of_m(weight, kept, 2, 4, key=torch.abs)["w"], kept["w"])


def test_an_m_that_does_not_divide():
    weight = {"conv": torch.randn(8, 3, 5, 5)}
    with pytest.raises(ValueError, match="2:4 needs 4 to divide the input dimension of 'conv', which is 3"):
        prune_n_of_m(weight, Mask.ones(weight), 2, 4)


def test_nan_in_a_pattern_names_the_tensor():
    weight = {"w": torch.tensor([[1.0, float("nan")]])}
    with pytest.raises(ValueError, match="'w' is NaN"):
        prune_n_of_m(weight, Mask.ones(weight), 1, 2)
    with pytest.raises(ValueError, match="'w' is NaN"):
        prune_neurons(weight, Mask.ones(weight), 0.5)


# --- neurons ---


def test_neurons_go_whole_and_the_weakest_first():
    generator = torch.Generator().manual_seed(0)
    weights = {"fc": torch.randn(10, 6, generator=generator), "conv": torch.randn(20, 3, 2, 2, generator=generator)}
    kept = prune_neurons(weights, Mask.ones(weights), 0.3, key=torch.abs)
    for name, gone in (("fc", 3), ("conv", 6)):
        rows = kept[name].flatten(1)
        assert torch.equal(rows.any(1), rows.all(1)) and int((~rows.any(1)).sum()) == gone
        sizes = weights[name].flatten(1).abs().sum(1)
        assert set((~rows.any(1)).nonzero().flatten().tolist()) == set(sizes.argsort()[:gone].tolist())
    again = prune_neurons(weights, kept, 0.5, key=torch.abs)
    assert again["fc"].any(1).sum() == 7 - round(0.5 * 7) and (again & kept) == again


def test_scores_of_inf_and_minus_inf_have_no_mean():
    weight = {"w": torch.ones(3, 4)}
    weight["w"][1, :2] = torch.tensor([torch.inf, -torch.inf])
    with pytest.raises(ValueError, match="neuron 1 of 'w' has scores of inf and of -inf, which have no mean"):
        prune_neurons(weight, Mask.ones(weight), 0.5)
    weight["w"][1, 1] = 1.0
    assert prune_neurons(weight, Mask.ones(weight), 0.7)["w"].any(1).tolist() == [False, True, False]


def test_neurons_over_all_layers_and_with_rates():
    weights = {"small": torch.full((4, 5), 0.1), "large": torch.ones(4, 9), "classifier": torch.zeros(3, 5)}
    kept = prune_neurons(weights, Mask.ones(weights), 0.5, rates={"classifier": 0.0}, scope="global", key=torch.abs)
    assert not kept["small"].any() and kept["large"].all() and kept["classifier"].all()


def test_neuron_scores_are_means():
    weights = {"w": torch.tensor([[1.0, -3.0], [5.0, 7.0]])}
    alive = Mask({"w": torch.tensor([[True, True], [False, True]])})
    assert neuron_scores(weights, alive, key=torch.abs)["w"].tolist() == [2.0, 3.5]


# --- heads ---

SMALL = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 8}


def llama(kv_heads):
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=kv_heads, vocab_size=11)).eval()


def masked(model, mask):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in mask:
                parameter.mul_(mask[name])
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertModel(BertConfig(**SMALL, vocab_size=11)),
        lambda: DistilBertModel(DistilBertConfig(dim=16, n_heads=4, n_layers=2, hidden_dim=8, vocab_size=11)),
        lambda: ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)),
        lambda: llama(4),
    ],
)
def test_heads_are_found_in_models_of_transformers(make):
    model = make()
    heads = attention_heads(model)
    assert len(heads) == 2 and all(those.count == 4 for those in heads.values())
    parameters = dict(model.named_parameters())
    assert all(parameters[name].shape == (16, 16) for those in heads.values() for name in those.names)


def test_scores_of_a_head_of_inf_and_minus_inf_have_no_mean():
    model = llama(2)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if "proj" in n}
    weights["layers.1.self_attn.q_proj.weight"][-1, 0] = torch.inf
    weights["layers.1.self_attn.o_proj.weight"][0, -1] = -torch.inf
    with pytest.raises(ValueError, match="head 1 of 'layers.1.self_attn' has scores of inf and of -inf"):
        prune_heads(weights, Mask.ones(weights), 0.5, attention_heads(model))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_pruned_head_is_a_head_that_attention_never_had(kv_heads):
    """Zeroing a head's weights must do to the output what dropping its attention output before o_proj does."""
    model = llama(kv_heads)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if "proj" in n}
    heads = attention_heads(model)
    kept = prune_heads(weights, Mask.ones(weights), 0.5, heads, key=torch.abs)
    ids = torch.arange(10).view(2, 5)
    dropped = {}
    for layer, those in heads.items():
        count = kv_heads if kv_heads > 1 else 4  # the only key-value head stays, and query heads go one by one
        assert those.count == count
        shape = kept[f"{layer}.q_proj.weight"].view(count, -1)
        assert torch.equal(shape.any(1), shape.all(1)) and int(shape.any(1).sum()) == count // 2
        dropped[layer] = (~shape.any(1)).repeat_interleave(16 // count)
        for name in ("k_proj", "v_proj"):
            assert int(kept[f"{layer}.{name}.weight"].any(1).sum()) == (2 * kv_heads if kv_heads > 1 else 4)

    def drop(layer):
        def hook(_, inputs):
            return (inputs[0].masked_fill(dropped[layer], 0),)

        return hook

    reference = llama(kv_heads)
    for layer in heads:
        reference.get_submodule(layer).o_proj.register_forward_pre_hook(drop(layer))
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
        found = masked(model, kept)(ids).last_hidden_state
    torch.testing.assert_close(found, expected)
    others = [name for name in kept if "self_attn" not in name]
    assert others and all(kept[name].all() for name in others)


def test_the_weakest_head_goes():
    model = llama(2)
    weights = {n: p.detach() for n, p in model.named_parameters() if "self_attn" in n and "layers.0" in n}
    heads = {layer: those for layer, those in attention_heads(model).items() if "layers.0" in layer}
    weights["layers.0.self_attn.q_proj.weight"][8:] *= 0.01  # query heads 2 and 3 share key-value head 1
    weights["layers.0.self_attn.o_proj.weight"][:, 8:] *= 0.01
    kept = prune_heads(weights, Mask.ones(weights), 0.5, heads, key=torch.abs)
    assert kept["layers.0.self_attn.q_proj.weight"].any(1).tolist() == [True] * 8 + [False] * 8
    assert kept["layers.0.self_attn.k_proj.weight"].any(1).tolist() == [True] * 4 + [False] * 4
    assert kept["layers.0.self_attn.v_proj.weight"].any(1).tolist() == [True] * 4 + [False] * 4
    assert kept["layers.0.self_attn.o_proj.weight"].any(0).tolist() == [True] * 8 + [False] * 8


def test_networks_without_heads_and_projections_left_out():
    with pytest.raises(ValueError, match="a Linear has no attention heads"):
        attention_heads(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'encoder.layer.0.attention', a ConvBertAttention, divide into heads is not"):
        attention_heads(ConvBertModel(ConvBertConfig(**SMALL, embedding_size=16, vocab_size=11)))
    model = llama(2)
    some = {n: p.detach() for n, p in model.named_parameters() if "q_proj" in n}
    with pytest.raises(ValueError, match=r"'layers.0.self_attn.k_proj.weight' is not among .* target_modules"):
        prune_heads(some, Mask.ones(some), 0.5, attention_heads(model))
    all_of_it = {n: p.detach() for n, p in model.named_parameters() if "proj" in n}
    with pytest.raises(ValueError, match="different pruning rates"):
        prune_heads(
            all_of_it, Mask.ones(all_of_it), 0.5, attention_heads(model), rates={"layers.0.self_attn.k_proj.weight": 0}
        )
