"""Counts on the meta device are the real network's, and what does not fit is refused before it is loaded."""

from __future__ import annotations

import pytest
from transformers import Qwen2Config

from hf_lottery.pruning.targets import prunable
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.memory import GIB, network_size, require_fits
from hf_lottery.runner.network import build_network
from hf_lottery.runner.plan import make_plan
from hf_lottery.tasks import causal_lm
from tests import tiny_lm

QWEN_3B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("name", "trainable", "masked"),
    [
        ("3b-lora-alpaca", 3_686_400, 3_686_400),
        ("3b-qlora-alpaca", 3_686_400, 3_686_400),
        ("3b-full", 3_085_938_688, 2_774_532_096),
        ("3b-lota", 2_774_532_096, 2_774_532_096),
    ],
)
def test_the_recipes_for_qwen_count_its_exact_parameters(name, trainable, masked):
    recipe = load_recipe(f"qwen2.5/{name}")
    if recipe.quantization is not None:
        pytest.importorskip("bitsandbytes")
    size = network_size(recipe, Qwen2Config(**QWEN_3B))
    assert (size.parameters, size.trainable, size.prunable) == (3_085_938_688, trainable, masked)
    if name == "3b-lora-alpaca":
        assert size.weights == 2 * 3_085_938_688 + 4 * 3_686_400  # bf16, and PEFT's adapters in fp32
        assert size.optimizer == 8 * 3_686_400
    if name == "3b-full":
        assert size.weights == size.gradients == size.optimizer // 2 == 4 * 3_085_938_688
    if name == "3b-qlora-alpaca":
        assert size.weights < network_size(load_recipe("qwen2.5/3b-lora-alpaca"), Qwen2Config(**QWEN_3B)).weights / 2


def test_counts_are_those_of_the_network_that_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    recipe = load_recipe(
        "smollm2/135m-lora",
        [
            f"model.name_or_path={tiny_lm.save_model(tmp_path / 'model')}",
            "model.gguf_file=null",
            f"data.path={tiny_lm.save_table(tmp_path / 'table')}",
            "data.max_length=400",
            "data.validation_size=4",
            "data.test_size=4",
            "training.use_cpu=true",
            f"training.output_dir={tmp_path / 'out'}",
        ],
    )
    size = network_size(recipe)
    assert f"memory    {size}" in str(make_plan(recipe))
    network = build_network(recipe, causal_lm.load(recipe.data, recipe.model), seed=0)
    parameters = dict(network.named_parameters())
    adapter = sum(p.numel() for name, p in parameters.items() if "lora_" in name)
    assert size.parameters == sum(p.numel() for p in parameters.values()) - adapter
    assert size.trainable == sum(p.numel() for p in parameters.values() if p.requires_grad) == adapter
    assert size.prunable == sum(p.numel() for p in prunable(network).values())
    assert size.weights == sum(p.numel() * p.element_size() for p in parameters.values())


def test_what_does_not_fit_is_one_sentence_that_says_what_to_do():
    recipe = load_recipe("qwen2.5/3b-full", ["model.dtype=float32"])
    size = network_size(recipe, Qwen2Config(**QWEN_3B))
    with pytest.raises(
        ValueError,
        match=r"Qwen/Qwen2.5-3B does not fit: 3,085,938,688 parameters.* and there are 24.0 GiB: set model.dtype=bf",
    ):
        require_fits(recipe, size, 24 * GIB)
    require_fits(recipe, size, 64 * GIB)
