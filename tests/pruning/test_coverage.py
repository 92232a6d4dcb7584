"""Coverage: the share of the trained weights that a mask is over, and the largest groups left out, by name."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from hf_lottery.pruning.coverage import Coverage, coverage
from hf_lottery.pruning.targets import prunable

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 32)
        self.lstm = nn.LSTM(32, 64)
        self.cell = nn.GRUCell(64, 8)
        self.head = nn.Linear(8, 3)


def covered(model: nn.Module, target=None, exclude=None) -> Coverage:
    found = coverage(model, prunable(model, target, exclude), target, exclude)
    assert found.prunable + sum(group.count for group in found.left_out) == found.trained
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert Coverage.from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()
    return found


def groups(found: Coverage) -> dict[str, tuple[str, int]]:
    return {group.name: (group.why, group.count) for group in found.left_out}


def test_recurrent_weights_are_covered_and_what_is_nearly_whole_is_said_shortly():
    found = covered(Recurrent())
    assert found.prunable == 4 * 64 * (32 + 64) + 3 * 8 * (64 + 8) + 24
    assert str(found) == "the mask is over 26,328 of 27,211 trained weights (96.8%)"


def test_excluded_and_untargeted_layers_are_named_by_size():
    excluded, untargeted = covered(Recurrent(), None, ["lstm"]), covered(Recurrent(), ["head"])
    assert groups(excluded)["lstm"] == ("in exclude_modules", 24576)
    assert groups(untargeted)["lstm"] == ("not in target_modules", 24576)
    assert str(excluded).endswith(
        "(6.44%); left out are 24,576 in lstm (in exclude_modules); 563 of norms, biases and other vectors; "
        "320 in words (embedding)"
    )


def test_fused_experts_and_routers():
    found = groups(
        covered(MixtralForCausalLM(MixtralConfig(vocab_size=16, num_local_experts=4, num_key_value_heads=1, **SMALL)))
    )
    assert found["model.layers.N.mlp.experts"] == ("fused experts", 6144)
    assert found["model.layers.N.mlp.gate.weight"] == ("parameter of no known layer", 128)
    assert found["model.embed_tokens"] == ("embedding", 256)


def test_tied_embeddings_bare_parameters_and_saved_modules():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    assert groups(covered(gpt2))["transformer.wte"] == ("embedding, tied to an output layer", 1024)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=2))
    assert groups(covered(mamba))["backbone.layers.N.mixer.A_log"] == ("parameter of no known layer", 1024)
    vit = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SMALL))
    assert groups(covered(vit))["vit.embeddings.position_embeddings"] == ("parameter of no known layer", 80)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=16, **SMALL)), lora)
    found = covered(adapted)
    assert groups(found)["base_model.model.lm_head.modules_to_save.default"] == ("in modules_to_save", 256)
    assert str(found).endswith(f"; {found.frozen:,} more are frozen")


def test_a_target_without_prunable_weights_lists_its_parameters():
    model = MixtralForCausalLM(MixtralConfig(vocab_size=16, num_local_experts=4, num_key_value_heads=1, **SMALL))
    for target in (["experts"], ["q_proj", "experts"], r".*\.experts"):
        with pytest.raises(
            ValueError, match=r"holds the parameters .*'model.layers.0.mlp.experts.gate_up_proj' \[4, 32, 16\]"
        ):
            prunable(model, target)
    assert len(prunable(model, ["experts.gate_up_proj"])) == 2
    with pytest.raises(ValueError, match="'q_proj' matches only what exclude_modules leaves out"):
        prunable(model, ["q_proj", "v_proj"], ["q_proj"])


def test_a_second_name_of_a_tied_weight_is_explained():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=True, **SMALL))
    for settings in ({"target_modules": ["lm_head"]}, {"exclude_modules": ["lm_head"]}):
        with pytest.raises(
            ValueError, match="'lm_head.weight', which is tied to 'model.embed_tokens.weight': name that"
        ):
            prunable(model, **settings)
