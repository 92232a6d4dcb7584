"""The CIFAR-10 and IMDb recipes: each is valid, and each trains, prunes and rewinds for a few steps."""

from __future__ import annotations

import re
import shlex

import datasets
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, BertConfig, BertModel, DistilBertConfig, DistilBertModel

from hf_lottery.bundled import find_recipe
from hf_lottery.pruning.targets import match_rates
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.build import build_trainer, load_data
from hf_lottery.tasks.building import architecture_config
from hf_lottery.tasks.tokenizing import Training, train_tokenizer
from tests.small_sets import BAD, GOOD, write_images, write_texts

# smaller networks of the same kind, where the recipe's own would take a test's time; and their schedules' lengths
SMALLER = {
    "cifar10/conv-2": [],
    "cifar10/conv-4": [],
    "cifar10/conv-6": [],
    "cifar10/resnet-20": ["training.lr_scheduler_kwargs.num_decay_steps=1"],
    "cifar10/vgg-16": ["model.config.depth=11", "training.lr_scheduler_kwargs.num_decay_steps=1"],
    "cifar10/vgg-19": [
        "model.config.depth=11",
        "training.lr_scheduler_kwargs.num_decay_steps=1",
        "training.warmup_steps=1",
    ],
    "cifar10/vit": ["model.config.num_hidden_layers=2"],
    "imdb/transformer": ["data.tokenizer.train.vocab_size=300"],
    "imdb/distilbert": [],
    "imdb/minilm": [],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def overrides(tmp_path):
    """Recipe name -> what makes it run on a handful of examples, two steps a round, with no network."""

    def of(name):
        if name.startswith("cifar10/"):
            folder = write_images(tmp_path / "set", sizes=(32,), labels=range(10))
        else:
            folder = write_texts(tmp_path / "set")
        rewind = "lottery.rewind_step=1" if load_recipe(name).lottery.get("rewind_step") else "lottery.rewind_step=0"
        small = [f"data.path={folder}", "data.validation_size=10", f"training.output_dir={tmp_path / 'out'}", rewind]
        small += ["training.max_steps=2", "training.eval_steps=1", "training.logging_steps=1"]
        small += ["training.per_device_train_batch_size=4", "lottery.num_rounds=1", "training.use_cpu=true"]
        if name.startswith("imdb/"):
            small.append("data.test_size=20")
        if name in ("imdb/distilbert", "imdb/minilm"):
            small.append(f"model.name_or_path={encoder(name, tmp_path / 'model')}")
        return small + SMALLER[name]

    return of


def encoder(name, folder):
    """A tiny pretrained encoder of the recipe's own kind, with its tokenizer."""
    tokenizer = train_tokenizer(GOOD + BAD, Training(vocab_size=300))
    if name == "imdb/distilbert":
        config = DistilBertConfig(vocab_size=len(tokenizer), dim=8, hidden_dim=12, n_layers=1, n_heads=2)
        DistilBertModel(config).save_pretrained(folder)
    else:
        size = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", SMALLER)
def test_a_recipe_trains_prunes_as_it_says_and_rewinds(name, overrides, tmp_path):
    recipe = load_recipe(name, overrides(name))
    config = recipe.lottery_config()
    trainer = build_trainer(recipe, load_data(recipe), seed=0, folder=tmp_path / "out")
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    assert {"eval_validation_accuracy", "eval_test_loss"} <= {key for log in trainer.state.log_history for key in log}

    before = dict(trainer.mask)
    trainer.prune()
    trainer.rewind()
    rate = {
        tensor: next((r for part, r in config.pruning_rates.items() if tensor.startswith(part)), config.pruning_rate)
        for tensor in before
    }
    removed = {tensor: int((before[tensor] & ~trainer.mask[tensor]).sum()) for tensor in before}
    if config.scope == "layer":
        for tensor, keep in before.items():
            assert removed[tensor] == round(rate[tensor] * keep.numel())
    else:
        assert sum(removed.values()) == round(config.pruning_rate * sum(keep.numel() for keep in before.values()))
    skipped = config.exclude_modules or []
    assert not any(part in tensor for tensor in before for part in skipped)
    owners = [trainer.model.get_submodule(tensor.rpartition(".")[0]) for tensor in before]
    assert not any(isinstance(owner, nn.Embedding) for owner in owners)

    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    assert all(not parameters[tensor][~keep].any() for tensor, keep in trainer.mask.items())
    assert all(parameter.isfinite().all() for parameter in parameters.values())


@pytest.mark.parametrize("name", SMALLER)
def test_a_recipe_opens_with_what_it_is_and_how_to_run_it(name):
    recipe = load_recipe(name)
    assert recipe.description.endswith(".")
    source = find_recipe(name).read_text()
    assert f"#   hf-lottery run {name}\n" in source
    assert "# Hardware:" in source


@pytest.mark.parametrize("name", SMALLER)
def test_every_command_that_a_recipe_gives_is_valid(name):
    text = find_recipe(name).read_text().replace("\\\n#", " ")
    commands = [shlex.split(line) for line in re.findall(r"^#   hf-lottery run (.+)$", text, re.MULTILINE)]
    assert len(commands) >= 2
    for recipe, *overrides in commands:
        load_recipe(recipe, overrides)
        assert recipe == name


def test_conv_2_is_pruned_as_the_papers_table_says():
    recipe = load_recipe("cifar10/conv-2")
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(architecture_config("conv-net", recipe.model.config, {}))
    kept = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    config = recipe.lottery_config()
    rates = {**dict.fromkeys(kept, config.pruning_rate), **match_rates(config.pruning_rates, kept)}
    for _ in range(11):
        kept = {name: n - round(rates[name] * n) for name, n in kept.items()}
    # P_m after 11 rounds, as the paper quotes it
    assert abs(100 * sum(kept.values()) / 4_300_992 - 8.81) < 0.005
