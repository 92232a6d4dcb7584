"""`hf-lottery check`: names, rates and coverage, wherever the model's config is on this machine."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.check import check
from hf_lottery.runner.plan import make_plan

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def recipe(tmp_path):
    """A function: what the section lottery has -> a recipe of a model that is a folder with a config alone."""
    BertConfig(**SMALL, architectures=["BertForSequenceClassification"]).save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()

    def make(lottery: str):
        text = (
            f"model: {{name_or_path: {tmp_path / 'model'}}}\n"
            f"data: {{task: text_classification, path: {data}}}\n"
            f"training: {{output_dir: {tmp_path / 'out'}, max_steps: 4}}\nlottery: {{{lottery}}}\n"
        )
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(str(tmp_path / "recipe.yaml"), [])

    return make


def test_coverage_of_a_local_model(recipe):
    model = BertForSequenceClassification(BertConfig(**SMALL))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"\nmask       over 1,824 of {total:,} trained weights" in check(recipe(""))


@pytest.mark.parametrize(
    ("lottery", "message"),
    [
        ("pruning_rates: {classifer: 0.1}", "pruning_rates: 'classifer' matches no module; .* 'classifier'"),
        ("pruning_rates: {LayerNorm: 0.1}", "pruning_rates: 'LayerNorm' matches no weight that is pruned"),
        ("target_modules: [querry]", "target_modules: 'querry' matches no module; the nearest name is 'query'"),
        ("exclude_modules: [poler]", "exclude_modules: 'poler' matches no module; the nearest name is 'pooler'"),
        ("pattern: '3:7'", "pattern 3:7 needs 7 to divide the input dimension of 'bert"),
        ("criterion: lora_product", "is not a LoRA's A or B"),
    ],
)
def test_what_does_not_fit_the_model(recipe, lottery, message):
    with pytest.raises(ValueError, match=message):
        check(recipe(lottery))


def test_the_plan_says_what_the_mask_covers(tmp_path):
    overrides = [f"training.output_dir={tmp_path}", "lottery.exclude_modules=[hidden.0]"]
    assert "\nmask      over 31,000 of 266,610 trained weights (11.6%); left out are 235,200 in hidden.0" in str(
        make_plan(load_recipe("recipes/quickstart.yaml", overrides))
    )
