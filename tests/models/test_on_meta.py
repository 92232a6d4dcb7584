"""Models that no machine holds are refused from their shape, before anything is allocated; so are impossible ones."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch import nn

from hf_lottery.models.on_meta import MOST_TENSORS, TooLarge, build_on_meta
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.build import load_data
from hf_lottery.runner.check import check

TEXTS = ["imdb/transformer", "data.path=."]


def test_a_model_is_given_up_as_soon_as_it_is_too_large():
    with pytest.raises(TooLarge, match="x does not fit: it has more than 64 TiB of weights"):
        build_on_meta(lambda: nn.Linear(10**7, 10**7), "x")
    with pytest.raises(TooLarge, match="more than 20,000 parameter tensors"):
        build_on_meta(lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(MOST_TENSORS)), "x")
    assert build_on_meta(lambda: nn.Linear(10**6, 10**6), "x").weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta  # nothing of it stays behind


def test_what_cannot_be_built_is_a_sentence():
    with pytest.raises(ValueError, match=r"x cannot be built from this recipe \(RuntimeError: "):
        build_on_meta(lambda: nn.Linear(-1, 2), "x")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.config.hidden_sizes=[1000000000]"], "at most 1,000,000 fits into a machine's memory"),
        (["model.config.hidden_sizes=[1000000, 1000000]"], "lenet does not fit: 1,000,796,000,010 parameters"),
        (["model.config.hidden_sizes=[0]"], "hidden_sizes has 0; it must be a whole number, 1 or more"),
        (["model.config.num_labels=1000000000"], "at most 1,000,000"),
        (["model={architecture: conv-net, config: {blocks: [[9], [9], [9], [9], [9], [9]]}}"], "nothing is left"),
        (["model={architecture: conv-net, config: {blocks: [3]}}"], "ConvNetConfig says"),
        (["model={architecture: cifar-resnet, config: {depth: 60002}}"], "more than 20,000 parameter tensors"),
        (["model={architecture: cifar-resnet, config: {hidden_sizes: [1]}}"], "the widths of three stages"),
        (["model={architecture: vit, config: {num_attention_heads: 0}}"], "vit cannot be built"),
        (["model={architecture: vit, config: {num_hidden_layers: 99999}}"], "parameter tensors"),
        (["model={architecture: gpt2}"], "'gpt2' is a model type without a model for the task image_classification"),
        ([*TEXTS, "model.config.num_attention_heads=0"], "num_attention_heads is 0; it must be a whole number"),
        ([*TEXTS, "model.config.num_attention_heads=-4"], "num_attention_heads is -4; it must be a whole number"),
        ([*TEXTS, "model.config.dropout=1.5"], "dropout is 1.5; it must be 0 or more and below 1"),
        ([*TEXTS, "model.config.hidden_size=1000000"], "small-transformer does not fit"),
        ([*TEXTS, "model={name_or_path: x, config: {hidden_size: 1000000000000}}"], "at most 1,000,000"),
    ],
)
def test_a_recipe_of_an_impossible_model_is_refused_by_check(words, said):
    recipe = words[0] if words[0].startswith("imdb") else "quickstart"
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError) as refused:
        check(load_recipe(recipe, words[recipe == words[0] :]))
    assert said in str(refused.value)
    assert psutil.Process().memory_info().rss - before < 1 << 30


def test_a_run_refuses_it_too_before_it_reads_data():
    recipe = load_recipe("quickstart", ["model.config.hidden_sizes=[1000000, 1000000]", "data.path=/nowhere"])
    with pytest.raises(ValueError, match="lenet does not fit"):
        load_data(recipe)


def test_a_pretrained_model_whose_config_is_made_huge_is_refused(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=28)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    model = f"model={{name_or_path: {tmp_path}, config: {{hidden_size: 1000000, intermediate_size: 1000000}}}}"
    with pytest.raises(ValueError, match="does not fit: "):
        load_data(load_recipe("quickstart", [model]))


@pytest.mark.parametrize("architecture", ["lenet", "conv-net", "vgg", "cifar-resnet"])
def test_the_papers_networks_pass(architecture):
    assert architecture in check(load_recipe("quickstart", [f"model={{architecture: {architecture}}}"]))


def test_a_wrong_type_in_a_config_is_a_recipe_error():
    for value in ("a", "[[]]", "{}", "null", "0.5", "true"):
        with pytest.raises(RecipeError, match="hidden_sizes"):
            load_recipe("quickstart", [f"model.config.hidden_sizes={value}"])
    assert torch.get_default_device().type == "cpu"
