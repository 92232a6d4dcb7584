"""Which weights are prunable, and which rate each has."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_lottery.pruning.targets import match_rates, prunable

TINY_LLAMA = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    tie_word_embeddings=True,
)  # fmt: skip


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.classifier = nn.Linear(8, 3)


def test_linear_and_convolution_weights_by_default():
    assert set(prunable(Mixed())) == {
        "conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "classifier.weight"
    }  # fmt: skip


def test_gpt2_conv1d_counts_as_linear_and_its_tied_head_does_not():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2))
    names = set(prunable(model))
    assert "transformer.h.0.attn.c_attn.weight" in names
    assert not any("wte" in name or "lm_head" in name for name in names)


def test_an_output_layer_tied_to_the_embedding_is_pruned_only_when_asked_for_and_once():
    model = LlamaForCausalLM(TINY_LLAMA)
    assert not any("embed_tokens" in name for name in prunable(model))
    assert list(prunable(model, ["embed_tokens"])) == ["model.embed_tokens.weight"]


def test_asking_for_norms_and_biases():
    assert list(prunable(Mixed(), ["norm"])) == ["norm.weight"]
    assert list(prunable(Mixed(), ["norm.bias", "classifier"])) == ["norm.bias", "classifier.weight"]


def test_a_name_covers_what_lies_inside_the_module_and_a_regex_is_for_the_whole_name():
    model = LlamaForCausalLM(TINY_LLAMA)
    assert len(prunable(model, ["self_attn"])) == 8
    assert len(prunable(model, r"model\.layers\.1\.mlp\..*")) == 3
    assert len(prunable(model, ["self_attn"], ["q_proj", "k_proj"])) == 4


def test_of_a_peft_model_the_adapter_is_prunable():
    model = get_peft_model(LlamaForCausalLM(TINY_LLAMA), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    names = set(prunable(model))
    assert len(names) == 8 and all("lora_" in name for name in names)
    assert set(prunable(model, ["v_proj"])) == {name for name in names if "v_proj" in name}


def test_frozen_and_quantised_weights_are_refused_by_name():
    model = Mixed()
    model.classifier.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'classifier.weight' \(frozen\)"):
        prunable(model, ["classifier"])
    model.classifier.weight = nn.Parameter(torch.zeros(3, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'classifier.weight' \(quantised, torch.uint8\)"):
        prunable(model, ["classifier"])


@pytest.mark.parametrize("argument", ["target_modules", "exclude_modules"])
def test_a_pattern_that_matches_nothing_names_the_nearest(argument):
    with pytest.raises(
        ValueError, match=rf"{argument}: 'clasifier' matches no module; the nearest name is 'classifier'"
    ):
        prunable(Mixed(), **{argument: ["clasifier"]})


def test_rates_by_pattern():
    names = ["hidden.0.weight", "hidden.1.weight", "classifier.weight"]
    assert match_rates({"hidden": 0.3, "hidden.1": 0.4}, names) == {"hidden.0.weight": 0.3, "hidden.1.weight": 0.4}
    with pytest.raises(ValueError, match="pruning_rates: 'hiden' matches no module; the nearest name is 'hidden'"):
        match_rates({"hiden": 0.1}, names)
