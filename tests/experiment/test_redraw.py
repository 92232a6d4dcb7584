"""Redrawing: new weights come from the distribution of the first ones, or the control is refused before training."""

from __future__ import annotations

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_lottery import LotteryConfig
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.experiment.redraw import redraw
from hf_lottery.layout import Network
from hf_lottery.recipe.sections import ModelSection
from hf_lottery.tasks.building import build
from tests.experiment.test_experiment import control
from tests.tiny import Net, make_trainer


class Odd(Net):
    """Its __init__ does not draw what torch's layers draw."""

    def __init__(self):
        super().__init__()
        nn.init.normal_(self.first.weight, 3.0, 0.01)
        nn.init.zeros_(self.classifier.weight)
        self.norm.running_mean.fill_(0.5)
        self.tied = nn.Linear(12, 24, bias=False)
        self.tied.weight = self.first.weight


def llama(**settings) -> LlamaConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=300, **sizes, **settings)


def test_a_plain_module_gets_what_its_factory_draws():
    torch.manual_seed(1)
    model = Odd()
    first = model.first.weight.detach().clone()
    with torch.no_grad():  # as after training
        model.first.weight.add_(1.0)
        model.norm.running_mean.add_(1.0)
    new = redraw(model, 5, Odd).tensors
    assert new["first.weight"].mean() == pytest.approx(3.0, abs=0.01)
    assert new["first.weight"].std() == pytest.approx(0.01, rel=0.2)
    assert not torch.equal(new["first.weight"], first)
    assert not new["classifier.weight"].any() and (new["norm.running_mean"] == 0.5).all()
    assert "tied.weight" not in new and torch.equal(model.first.weight, first + 1.0)


def test_a_factory_may_take_the_trial_and_frozen_weights_are_not_drawn():
    model = Net()
    model.first.weight.requires_grad_(False)
    assert "first.weight" not in redraw(model, 5, lambda trial: Net()).tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_transformers_model_gets_the_distribution_that_from_config_draws(dtype, tied):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(llama(tie_word_embeddings=tied, initializer_range=0.1), dtype=dtype)
    first = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    new = redraw(model, 5)
    assert new.tensors.keys() == first.keys() | dict(model.named_buffers()).keys()
    assert ("lm_head.weight" in new.tensors) == (not tied)
    new.restore(model)
    for name, old in first.items():
        value = model.get_parameter(name).detach().float()
        if old.unique().numel() == 1:
            assert torch.equal(value, old)
        else:
            assert not torch.equal(value, old)
            assert value.mean() == pytest.approx(float(old.mean()), abs=0.01)
            for share in (0.02, 0.25, 0.5, 0.75, 0.98):
                assert value.quantile(share) == pytest.approx(float(old.quantile(share)), abs=0.02)


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
ARCHITECTURES = {
    "lenet": ("image_classification", {}),
    "conv-net": ("image_classification", {}),
    "cifar-resnet": ("image_classification", {}),
    "vgg": ("image_classification", {}),
    "small-transformer": ("text_classification", {"vocab_size": 90}),
    "vit": ("image_classification", {**SMALL, "image_size": 8, "patch_size": 4}),
    "bert": ("text_classification", {**SMALL, "vocab_size": 90}),
    "gpt2": ("causal_lm", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 90}),
    "qwen2": ("causal_lm", {**SMALL, "vocab_size": 90, "num_key_value_heads": 1, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_recipes_architecture_is_drawn_again_as_its_task_draws_it(architecture):
    """Under the same seed: bit for bit the weights and buffers that a replicate of this seed starts from."""
    task, config = ARCHITECTURES[architecture]

    def make(seed):
        return build(task, ModelSection(architecture=architecture, config=config), seed)

    model, other = make(1), make(5)
    new = redraw(model, 5).tensors
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    assert new.keys() == state.keys()
    assert all(torch.equal(new[name], value) for name, value in state.items())
    assert not all(torch.equal(new[name], value) for name, value in model.named_parameters())


def test_a_pretrained_model_gets_the_random_weights_of_its_config(tmp_path):
    torch.manual_seed(1)
    source = LlamaForCausalLM(llama())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(50)
    source.save_pretrained(tmp_path)

    def load():
        return LlamaForCausalLM.from_pretrained(tmp_path)

    for model_init in (None, load):  # loading is not drawing
        new = redraw(load(), 5, model_init).tensors
        assert new["model.layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.1)


def test_a_transformers_model_that_its_factory_initialises_gets_that():
    def make():
        model = LlamaForCausalLM(llama())
        nn.init.normal_(model.model.layers[0].mlp.up_proj.weight, std=0.3)
        return model

    new = redraw(make(), 5, make).tensors
    assert new["model.layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_adapters_are_drawn_as_peft_draws_them(init):
    def make(seed):
        torch.manual_seed(0)
        base = LlamaForCausalLM(llama())
        torch.manual_seed(seed)
        targets = ["q_proj"] if init == "orthogonal" else ["q_proj", "embed_tokens"]
        return get_peft_model(base, LoraConfig(target_modules=targets, r=8, init_lora_weights=init))

    model, other = make(1), make(2)
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    new = redraw(model, 5).tensors
    assert parameters == dict(model.named_parameters())  # the very same objects, with their old values
    assert all(torch.equal(before[name], p) for name, p in parameters.items())
    adapters = {name for name, p in parameters.items() if p.requires_grad}
    assert adapters == new.keys() - dict(model.named_buffers()).keys()
    for name in adapters:
        assert torch.equal(before[name], new[name]) == (not before[name].any()), name
        assert new[name].std() == pytest.approx(float(other.get_parameter(name).detach().std()), rel=0.3, abs=1e-9)


class Seeded(Net):
    def __init__(self):
        torch.manual_seed(7)
        super().__init__()


class Loaded(Net):
    """One of its layers is loaded: the same numbers under every seed."""

    def __init__(self):
        super().__init__()
        self.first.weight.data = torch.arange(288.0).view(24, 12) / 1000


def test_what_cannot_be_drawn_again_says_so():
    head = LlamaForCausalLM(llama(tie_word_embeddings=False))
    head.lm_head = nn.Linear(64, 7)
    ia3 = get_peft_model(LlamaForCausalLM(llama()), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    dora = LoraConfig(target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    for model, factory, message in (
        (Net(), None, "a Net cannot be drawn again.*give the trainer a model_init.*leave random_reinit"),
        (Net(), Seeded, "the same 'first.weight' under every seed.*without a seed of its own"),
        (Net(), Loaded, "the same 'first.weight' under every seed.*without loading weights"),
        (head, None, r"LlamaForCausalLM was changed.*no 'lm_head.weight' of shape \(7, 64\).*model_init"),
        (ia3, None, "an adapter that is no LoRA.*model_init"),
        (get_peft_model(LlamaForCausalLM(llama()), dora), None, "DoRA's magnitudes.*model_init"),
    ):
        with pytest.raises(ValueError, match=message):
            redraw(model, 5, factory)


@pytest.mark.parametrize("name", ["random_reinit", "signed_reinit"])
@pytest.mark.parametrize("model", [{"model": Net()}, {"model_init": Seeded}])
def test_it_is_refused_before_anything_is_trained(tmp_path, name, model):
    def make(seed, folder):
        return make_trainer(folder, lottery_config=LotteryConfig(num_rounds=2), seed=seed, max_steps=2, **model)

    with pytest.raises(ValueError, match="cannot be drawn again"):
        Experiment(tmp_path, 2, 1, [control(name, [2])], 42, make).run()
    assert not Network(0, 0).folder(tmp_path).joinpath("result.json").exists()


def test_a_factory_draws_the_control_in_an_experiment(tmp_path):
    class Far(Net):
        def __init__(self):
            super().__init__()
            nn.init.normal_(self.first.weight, 3.0, 0.01)

    def make(seed, folder):
        config = LotteryConfig(num_rounds=1, pruning_rate=0.4)
        return make_trainer(folder, lottery_config=config, seed=seed, max_steps=2, learning_rate=1e-5, model_init=Far)

    experiment = Experiment(tmp_path, 1, 1, [control("random_reinit")], 42, make)
    experiment.run()
    ticket, other = (experiment.folder(Network(0, 1, name)) for name in ("ticket", "random_reinit"))
    kept = ticket.mask()["first.weight"]
    one, two = (folder.trained().tensors["first.weight"][kept] for folder in (ticket, other))
    assert two.mean() == pytest.approx(3.0, abs=0.01) and not torch.allclose(one, two, atol=1e-3)
