"""Neurons of whole models: as many outputs of every layer are dead in the forward pass as the rate says."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_lottery import LotteryConfig, Mask
from hf_lottery.pruning.context import PruningContext
from hf_lottery.pruning.gated import gated_mlps
from hf_lottery.pruning.step import check_network, next_mask
from hf_lottery.pruning.targets import prunable
from tests.pruning import attention_models
from tests.pruning.attention_models import FAMILIES, GPT, images, network, tokens
from tests.tiny import make_trainer

RATE = 0.3
OTHERS = {
    "resnet": (hf.ResNetModel, hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), images),
    "convnext": (hf.ConvNextModel, hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), images),
    "mamba": (hf.MambaModel, hf.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1), tokens),
}


def made(family):
    if family in FAMILIES:
        return network(family)
    make, config, inputs = OTHERS[family]
    torch.manual_seed(0)
    return make(config).eval(), inputs()


def pruned(model, config):
    weights = prunable(model, config.target_modules, config.exclude_modules)
    check_network(model, config, weights, {})
    return next_mask(PruningContext(model, config, Mask.ones(weights), weights, {}, dict, list, None, 0))


def under(model, mask):
    with torch.no_grad():
        for name, kept in mask.items():
            model.get_parameter(name).mul_(kept)


def first_calls(model, names, inputs):
    """Name -> input of its layer when it is first called."""
    found, hooks = {}, []
    for name in names:

        def note(_, given, name=name):
            found.setdefault(name, given[0].detach())

        hooks.append(model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(note))
    torch.manual_seed(0)
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_as_many_outputs_of_every_layer_are_dead_as_the_rate_says(family):
    model, inputs = made(family)
    mask = pruned(model, LotteryConfig(pattern="neuron", pruning_rate=RATE))
    under(model, mask)
    downs = {mlp.names[-1] for mlp in gated_mlps(model).values()}
    calls = first_calls(model, mask, inputs)
    assert len(calls) >= len(mask) / 2  # some functions read the weights of a layer that they do not call
    for name, given in calls.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        if name in downs:  # here the neurons are the inputs
            dead, of = (given.flatten(0, -2) == 0).all(0), given.shape[-1]
        else:
            with torch.no_grad():
                result = module(torch.randn_like(given))
            dim = 1 if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)) else -1
            outputs = result.movedim(dim, 0).flatten(1)
            bias = 0 if module.bias is None else module.bias.detach()[:, None]
            dead, of = (outputs == bias).all(1), len(outputs)
        assert int(dead.sum()) == round(RATE * of), name


def test_neurons_of_gpt2s_mlp_are_those_of_the_smaller_mlp():
    """GPT-2 multiplies by its weights from the right: a neuron is a column of c_fc."""
    torch.manual_seed(0)
    model = hf.GPT2Model(hf.GPT2Config(**GPT)).eval()
    config = LotteryConfig(pattern="neuron", pruning_rate=0.25, target_modules=["c_fc"])
    mask = pruned(model, config)
    smaller = copy.deepcopy(model)
    for block in smaller.h:
        inner, outer = block.mlp.c_fc, block.mlp.c_proj
        kept = inner.weight.detach().abs().mean(0).argsort()[32:].sort().values  # 128 neurons, a quarter goes
        inner.weight, inner.bias = nn.Parameter(inner.weight[:, kept]), nn.Parameter(inner.bias[kept])
        inner.nf, outer.weight = len(kept), nn.Parameter(outer.weight[kept])
    under(model, mask)
    with torch.no_grad():
        expected, found = (each(**tokens()).last_hidden_state for each in (smaller, model))
    torch.testing.assert_close(found, expected)
    assert all(kept.shape == (32, 128) and kept.any(0).sum() == 96 for kept in mask.values())


def test_filters_of_a_transposed_convolution_are_those_of_the_smaller_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, bias=False), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, bias=False))
    mask = pruned(model, LotteryConfig(pattern="neuron", pruning_rate=0.25, target_modules=["0"]))
    first, _, second = copy.deepcopy(model)
    kept = first.weight.detach().abs().mean((0, 2, 3)).argsort()[2:]
    first.weight, second.weight = nn.Parameter(first.weight[:, kept]), nn.Parameter(second.weight[kept])
    under(model, mask)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(model(x), second(first(x).relu()))


@pytest.mark.parametrize("family", ["gpt2", "bert", "bart", "t5", "falcon", "neox", "bloom", "opt", "llama"])
def test_two_of_four_lie_along_the_inputs(family):
    model, _ = made(family)
    mask = pruned(model, LotteryConfig(pattern="2:4"))
    for name, kept in mask.items():
        transposed = isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D)
        rows = kept.t() if transposed else kept  # (outputs, inputs)
        assert (rows.unflatten(1, (-1, 4)).sum(-1) == 2).all(), name


def test_a_trainer_prunes_gpt2_by_wanda_along_the_inputs(tmp_path):
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**GPT))
    data = [{"input_ids": row, "labels": row} for row in attention_models.IDS]
    trainer = make_trainer(
        tmp_path, model, train=data, lottery_config=LotteryConfig(criterion="wanda", pattern="2:4"), max_steps=1
    )
    for kept in trainer.prune().values():
        assert (kept.t().unflatten(1, (-1, 4)).sum(-1) == 2).all()
