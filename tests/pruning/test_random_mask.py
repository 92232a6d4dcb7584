"""The random mask: of the pattern's own units, as many in every tensor, every choice equally likely."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from hf_lottery import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.pruning.attention import attention_heads
from hf_lottery.pruning.context import PruningContext
from hf_lottery.pruning.gated import gated_mlps
from hf_lottery.pruning.lora import lora_pairs
from hf_lottery.pruning.random_mask import random_mask_like
from hf_lottery.pruning.step import next_mask
from hf_lottery.pruning.targets import prunable


def llama(kv_heads: int = 4, tokens: int = 20) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=tokens, num_key_value_heads=kv_heads, **sizes))


def phi3() -> Phi3ForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Phi3ForCausalLM(Phi3Config(vocab_size=20, pad_token_id=0, **sizes))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 3), nn.Conv1d(8, 5, 2)
        self.odd = nn.Linear(7, 3)


def lora() -> nn.Module:
    return get_peft_model(llama(), LoraConfig(r=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False))


def pruned(model: nn.Module, config: LotteryConfig, rounds: int, rates=None) -> Mask:
    """The mask after some prunings of random weights."""
    weights = prunable(model, config.target_modules, config.exclude_modules, config.prune_embeddings)
    mask = Mask.ones(weights)
    for _ in range(rounds):
        context = PruningContext(model, config, mask, weights, rates or {}, dict, list, None, 0)
        mask = next_mask(context)
    return mask


def drawn(mask: Mask, model: nn.Module, config: LotteryConfig, seed: int) -> Mask:
    return random_mask_like(mask, model, config, torch.Generator().manual_seed(seed))


def whole(*parts: torch.Tensor) -> None:
    """Each part is [units, weights]: a unit is kept in all parts or in none."""
    of_part = torch.stack([part.all(1) for part in parts])
    assert (of_part == torch.stack([part.any(1) for part in parts])).all() and (of_part == of_part[0]).all()


def legal_rows(mask, model):
    for kept in mask.values():
        whole(kept.flatten(1))


def legal_neurons(mask, model):
    mlps = gated_mlps(model)
    assert len(mlps) == 2
    for mlp in mlps.values():
        whole(*(part for name in mlp.names for part in mlp.parts(name, mask[name])))
    inside = {name for mlp in mlps.values() for name in mlp.names}
    legal_rows({name: kept for name, kept in mask.items() if name not in inside}, model)


def legal_heads(mask, model):
    for layer in attention_heads(model).values():
        whole(*(part for name in layer.names for part in layer.parts(name, mask[name])))
    others = set(mask) - {name for layer in attention_heads(model).values() for name in layer.names}
    assert others and all(mask[name].all() for name in others)


def legal_ranks(mask, model):
    pairs = lora_pairs(mask).values()
    assert len(pairs) == 4
    for a, b in pairs:
        whole(mask[a], mask[b].t())


def legal_2_of_4(mask, model):
    for name, kept in mask.items():
        if name != "odd.weight":
            assert (kept.movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1) == 2).all()


def legal_table(mask, model):
    whole(mask["model.embed_tokens.weight"])
    assert any(row.any() and not row.all() for row in mask["model.layers.0.mlp.up_proj.weight"])


CASES = {
    "neuron": (llama, {"pattern": "neuron", "exclude_modules": ["lm_head"]}, {}, legal_neurons),
    "neurons with gate and up in one weight": (phi3, {"pattern": "neuron"}, {}, legal_neurons),
    "filters": (Convolutions, {"pattern": "neuron"}, {"odd.weight": 0.0}, legal_rows),
    "head": (llama, {"pattern": "head"}, {}, legal_heads),
    "grouped heads": (lambda: llama(2), {"pattern": "head"}, {}, legal_heads),
    "rank": (lora, {"pattern": "rank"}, {}, legal_ranks),
    "global ranks": (lora, {"pattern": "rank", "scope": "global"}, {}, legal_ranks),
    "2:4": (llama, {"pattern": "2:4"}, {}, legal_2_of_4),
    "2:4 of channels": (Convolutions, {"pattern": "2:4"}, {"odd.weight": 0.0}, legal_2_of_4),
    "tokens": (llama, {"prune_embeddings": "rows"}, {}, legal_table),
    "tokens and neurons": (llama, {"prune_embeddings": "rows", "pattern": "neuron"}, {}, legal_neurons),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@given(seed=st.integers(0, 2**31), rounds=st.integers(1, 3), rate=st.sampled_from([0.3, 0.5]))
@settings(max_examples=8, deadline=None)
def test_it_is_a_mask_of_the_pattern_with_the_counts_of_every_tensor_and_another(case, seed, rounds, rate):
    make, options, rates, legal = case
    torch.manual_seed(seed)
    model, config = make(), LotteryConfig(pruning_rate=rate, **options)
    ticket = pruned(model, config, rounds, rates)
    legal(ticket, model)
    other = drawn(ticket, model, config, seed)
    legal(other, model)
    assert other.counts() == ticket.counts() and list(other) == list(ticket)
    assert other != ticket and other == drawn(ticket, model, config, seed)


@given(seed=st.integers(0, 2**31), share=st.floats(0.0, 1.0))
@settings(max_examples=20, deadline=None)
def test_of_single_weights_it_is_the_shuffled_mask_bit_for_bit(seed, share):
    generator = torch.Generator().manual_seed(seed)
    mask = Mask({"b": torch.rand(3, 5, generator=generator) < share, "a": torch.rand(2, generator=generator) < share})
    assert drawn(mask, nn.Module(), LotteryConfig(), seed) == mask.shuffled(torch.Generator().manual_seed(seed))


def test_a_dense_mask_stays():
    model, config = llama(), LotteryConfig(pattern="head")
    assert drawn(Mask.ones(prunable(model)), model, config, 1).density() == 1


def uniform(seen: Counter, choices: int, draws: int) -> None:
    """Every choice comes up, none beside them, as often as chance has it: within five standard deviations."""
    assert len(seen) == choices
    expected = draws / choices
    assert all(abs(count - expected) < 5 * expected**0.5 for count in seen.values())


@pytest.mark.parametrize("pattern", ["neuron", "head", "rank"])
def test_every_choice_of_units_is_equally_likely_but_the_tickets(pattern):
    torch.manual_seed(0)
    if pattern == "rank":
        model = get_peft_model(llama(), LoraConfig(r=4, target_modules="model.layers.0.*q_proj"))
        options = {}
    else:
        model, options = llama(), {"target_modules": ["layers.0"]}
    config = LotteryConfig(pattern=pattern, **options)
    names = [name for name in prunable(model) if ".layers.0." in name]
    kept = torch.tensor([True, False, True, False])
    mask = Mask({name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names})
    if pattern == "neuron":
        mask = Mask({names[0]: kept[:, None].expand(4, 3)})
        key = names[0]
    elif pattern == "head":
        layers = attention_heads(model)
        (first, *_) = layers.values()
        expanded = {name: first.expand(kept, name, mask[name].shape).expand(mask[name].shape) for name in first.names}
        mask, key = Mask({**mask, **expanded}), first.names[0]
        others = [layer for layer in layers.values() if layer is not first]
        mask = Mask({**mask, **{n: torch.ones(32, 32).bool() for layer in others for n in layer.names}})
    else:
        ((a, b),) = lora_pairs(mask).values()
        mask, key = Mask({a: kept[:, None].expand(4, 32), b: kept[None].expand(32, 4)}), a
    generator = torch.Generator().manual_seed(1)
    rows = mask[key].shape[0] // 4
    masks = [random_mask_like(mask, model, config, generator)[key][::rows, 0] for _ in range(1000)]
    uniform(Counter(tuple(each.tolist()) for each in masks), 5, 1000)  # 4 over 2, less the ticket's


def test_every_choice_of_two_of_four_is_equally_likely_in_every_group():
    mask = Mask({"weight": torch.tensor([True, True, False, False]).repeat(2).expand(1, 8)})
    generator, config = torch.Generator().manual_seed(1), LotteryConfig(pattern="2:4")
    masks = [random_mask_like(mask, nn.Linear(8, 1), config, generator)["weight"] for _ in range(3500)]
    choices = [c for c in product([True, False], repeat=4) if sum(c) == 2]
    seen = Counter(tuple(each[0].tolist()) for each in masks)
    assert set(seen) == {one + two for one in choices for two in choices} - {tuple(mask["weight"][0].tolist())}
    uniform(seen, 35, 3500)
