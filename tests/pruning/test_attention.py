"""Attention heads of many families: a pruned head is dead in the forward pass, and no other head notices."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_lottery import LotteryConfig, Mask
from hf_lottery.pruning.attention import attention_heads, require_known
from hf_lottery.pruning.heads import prune_heads
from hf_lottery.pruning.patterns import PATTERNS
from hf_lottery.pruning.targets import prunable
from hf_lottery.pruning.units import shuffle_units
from tests import tiny_lm
from tests.pruning.attention_models import FAMILIES, GROUPED, IMAGES, SIZES, network
from tests.tiny import make_trainer


def output(model, inputs):
    torch.manual_seed(0)
    with torch.no_grad():
        found = model(**inputs).to_tuple()
    return [part for part in found if isinstance(part, torch.Tensor)]


def into_output_projections(model, heads, inputs):
    """Name of an attention layer -> the input of its output projection when it is first called."""
    first, hooks = {}, []
    for layer, those in heads.items():

        def note(_, given, layer=layer):
            first.setdefault(layer, given[0].detach().clone())

        projection = model.get_submodule(those.names[-1].removesuffix(".weight"))
        hooks.append(projection.register_forward_pre_hook(note))
    output(model, inputs)
    for hook in hooks:
        hook.remove()
    return first


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_queries_keys_and_values_a_head_is_zero_and_the_others_are_as_before(family):
    """Values lie side by side in the input of the output projection, in every family: there its heads are seen."""
    model, inputs = network(family)
    heads = attention_heads(model)
    expected = sorted(FAMILIES[family][3])
    assert sorted(those.count for those in heads.values()) == expected
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith("bias"):
                parameter.zero_()
    before = into_output_projections(model, heads, inputs)
    for layer, those in heads.items():
        for head in range(those.count):
            kept = torch.arange(those.count) != head
            saved = {name: parameters[name].detach().clone() for name in those.names[:-1]}
            with torch.no_grad():
                for name in saved:
                    parameters[name].mul_(those.expand(kept, name, parameters[name].shape))
                after = into_output_projections(model, {layer: those}, inputs)[layer]
                for name, value in saved.items():
                    parameters[name].copy_(value)
            old, new = (part.unflatten(-1, (those.count, -1)) for part in (before[layer], after))
            if "one key" in family:  # it stays, and with it the value of a head without queries
                assert not torch.allclose(old[..., head, :], new[..., head, :])
            else:
                assert old[..., head, :].abs().max() > 1e-6 and new[..., head, :].abs().max() == 0
            torch.testing.assert_close(new[..., kept, :], old[..., kept, :])


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_heads_are_heads_that_attention_never_had(family):
    """Zeroing heads' weights does to the output what dropping them before the output projection does."""
    model, inputs = network(family)
    heads = attention_heads(model)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    mask = prune_heads(weights, Mask.ones(weights), 0.5, heads, key=torch.abs)
    drawn = shuffle_units(mask, heads.values(), torch.Generator().manual_seed(1))
    inside = {name for those in heads.values() for name in those.names}
    assert all(kept.all() for name, kept in mask.items() if name not in inside)
    for kept in (mask, drawn):
        dropped = {}
        for layer, those in heads.items():
            parts = torch.cat([p for name in those.names for p in those.parts(name, kept[name])], 1)
            assert torch.equal(parts.any(1), parts.all(1))
            assert int((~parts.any(1)).sum()) == round(0.5 * those.count)
            dropped[layer] = ~parts.any(1)
        torch.testing.assert_close(masked_output(model, inputs, kept), output_without(model, heads, dropped, inputs))


def masked_output(model, inputs, mask):
    saved = {name: model.get_parameter(name).detach().clone() for name in mask}
    with torch.no_grad():
        for name, kept in mask.items():
            model.get_parameter(name).mul_(kept)
        found = output(model, inputs)
        for name, value in saved.items():
            model.get_parameter(name).copy_(value)
    return found


def output_without(model, heads, dropped, inputs):
    hooks = []
    for layer, those in heads.items():

        def drop(_, given, gone=dropped[layer]):
            heads_apart = given[0].unflatten(-1, (len(gone), -1))
            return (heads_apart.masked_fill(gone[:, None], 0).flatten(-2),)

        projection = model.get_submodule(those.names[-1].removesuffix(".weight"))
        hooks.append(projection.register_forward_pre_hook(drop))
    found = output(model, inputs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("width", [8, 6])
def test_heads_of_torchs_attention(width):
    """It calls no module, so heads are compared with an attention that is computed here, head by head."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 4, kdim=width, vdim=width, batch_first=True).eval()
    heads = attention_heads(attention)[""]
    weights = {name: p.detach() for name, p in attention.named_parameters() if name in heads.names}
    mask = prune_heads(weights, Mask.ones(weights), 0.5, {"": heads}, key=torch.abs)
    gone = ~torch.cat([part for name in heads.names for part in heads.parts(name, mask[name])], 1).any(1)
    x, y = torch.randn(2, 5, 8), torch.randn(2, 7, width)
    expected = by_hand(attention, x, y, gone)
    with torch.no_grad():
        for name, kept in mask.items():
            attention.get_parameter(name).mul_(kept)
        found, _ = attention(x, y, y)
    assert int(gone.sum()) == 2
    torch.testing.assert_close(found, expected)


def by_hand(attention, x, y, gone):
    fused = attention.in_proj_weight
    q, k, v = fused.chunk(3) if fused is not None else [getattr(attention, f"{n}_proj_weight") for n in "qkv"]
    with torch.no_grad():
        result = attention.out_proj.bias.expand(*x.shape).clone()
        for head in range(4):
            rows = slice(2 * head, 2 * head + 2)
            query, key, value = x @ q[rows].T, y @ k[rows].T, y @ v[rows].T  # biases start at 0
            if not gone[head]:
                weights = (query @ key.transpose(1, 2) / 2**0.5).softmax(-1)
                result += weights @ value @ attention.out_proj.weight[:, rows].T
    return result


UNKNOWN = {
    "its heads are in four interleaved parts": (
        hf.CodeGenModel, hf.CodeGenConfig(vocab_size=40, n_embd=32, n_layer=1, n_head=4, rotary_dim=4),
        "CodeGenAttention",
    ),
    "some heads are convolutions": (hf.ConvBertModel, hf.ConvBertConfig(**SIZES), "ConvBertAttention"),
    "low-rank keys and values": (
        hf.DeepseekV2Model,
        hf.DeepseekV2Config(
            **SIZES, kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8,
            n_routed_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, n_group=1, topk_group=1,
        ),
        "DeepseekV2Attention",
    ),
    "tensors of three dimensions": (
        hf.XLNetModel, hf.XLNetConfig(vocab_size=40, d_model=32, n_layer=1, n_head=4, d_inner=24),
        "XLNetRelativeAttention",
    ),
    "queries are normalised over all heads": (hf.Olmo2Model, hf.Olmo2Config(**GROUPED), "'q_norm' of 'layers.0"),
    "a norm before the output projection": (hf.BitNetModel, hf.BitNetConfig(**GROUPED), "'attn_sub_norm' of 'lay"),
    "a layer with the keys of another": (
        hf.Gemma3nTextModel,
        hf.Gemma3nTextConfig(
            **GROUPED, head_dim=8, hidden_size_per_layer_input=8, vocab_size_per_layer_input=40,
            num_kv_shared_layers=1, laurel_rank=4, layer_types=["full_attention", "full_attention"],
        ),
        "'layers.1.self_attn', a Gemma3nTextAttention",
    ),
    "no attention": (hf.FNetModel, hf.FNetConfig(vocab_size=40, hidden_size=32), "FNetModel has no attention heads"),
    "a mixer": (hf.MambaModel, hf.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1), "MambaModel has"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_attention_whose_heads_are_not_known_is_refused_when_the_trainer_is_made(tmp_path, case):
    make, config, said = UNKNOWN[case]
    with pytest.raises(
        ValueError, match=rf"pattern is head, and .*{said}.*; use pattern neuron|{said}.*exclude_modules"
    ):
        make_trainer(tmp_path, make(config), lottery_config=LotteryConfig(pattern="head"))


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.known, self.own, self.classifier = nn.MultiheadAttention(8, 2), OwnAttention(), nn.Linear(8, 3)


def test_one_unknown_attention_beside_a_known_one_is_refused_unless_left_out():
    model = Two()
    heads = attention_heads(model)
    with pytest.raises(
        ValueError, match=r"the weights of 'own', a OwnAttention, .* 'own.out.weight': name it in excl"
    ):
        require_known(model, heads, prunable(model))
    require_known(model, heads, prunable(model, exclude_modules=["own"]))
    require_known(model, heads, prunable(model, target_modules=["known"]))


def check(model, rates=None, **names):
    config = LotteryConfig(pattern="head", **names)
    PATTERNS["head"].check(model, config, prunable(model, config.target_modules, config.exclude_modules), rates or {})


def test_a_layer_is_pruned_in_all_its_projections_or_left_out():
    model = tiny_lm.model()
    check(model, exclude_modules=["layers.0"])
    check(model, target_modules=["layers.1"])
    with pytest.raises(
        ValueError, match=r"in all projections of 'model.layers.0.self_attn', and .*k_proj.weight' is not"
    ):
        check(model, exclude_modules=["layers.0.self_attn.k_proj"])
    with pytest.raises(ValueError, match="pruning.rates.* same"):
        check(model, rates={"model.layers.1.self_attn.q_proj.weight": 0.0})
    with pytest.raises(ValueError, match="none of the weights that are pruned is of an attention layer"):
        check(model, target_modules=["mlp"])


def test_a_trainer_prunes_as_many_heads_of_every_layer_as_the_layer_has(tmp_path):
    make, config, *_ = FAMILIES["bart"]
    trainer = make_trainer(tmp_path, make(config), lottery_config=LotteryConfig(pattern="head", pruning_rate=0.5))
    mask = trainer.prune()
    for name, kept in mask.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            heads = kept.unflatten(0, (4 if "encoder.layers" in name else 2, -1)).flatten(1)
            assert torch.equal(heads.any(1), heads.all(1)) and int(heads.any(1).sum()) == len(heads) // 2


def test_heads_over_an_adapter_are_refused():
    with pytest.raises(ValueError, match="an adapter's weights do not divide into heads; use pattern rank or weight"):
        attention_heads(get_peft_model(tiny_lm.model(), LoraConfig(r=2, target_modules=["q_proj"])))


def test_sizes_that_contradict_the_number_of_heads_are_refused():
    model = hf.ViTModel(hf.ViTConfig(**IMAGES))
    for module in model.modules():
        if hasattr(module, "head_dim"):
            module.head_dim = 5  # does not divide 32
    with pytest.raises(ValueError, match="divide into heads is not known"):
        attention_heads(model)
