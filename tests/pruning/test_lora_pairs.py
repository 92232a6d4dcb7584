"""LoRA entries by their effect on ΔW, whole ranks, and a B that is still zero."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_lottery.mask import Mask
from hf_lottery.pruning.lora import lora_product, prune_ranks, rank_scores, require_lora
from hf_lottery.pruning.selection.select import prune

A, B = "m.{}.lora_A.default.weight", "m.{}.lora_B.default.weight"


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return {B.format("q"): torch.randn(5, 3), A.format("q"): torch.randn(3, 4)}


def test_an_entry_is_worth_what_its_removal_does_to_the_update(pair):
    found = lora_product(pair)
    a, b = pair[A.format("q")], pair[B.format("q")]
    assert list(found) == list(pair)
    for name, weight in pair.items():
        for index in range(weight.numel()):
            without = {key: value.clone() for key, value in pair.items()}
            without[name].view(-1)[index] = 0
            change = (b @ a - without[B.format("q")] @ without[A.format("q")]).norm()
            assert float(found[name].view(-1)[index]) == pytest.approx(float(change), rel=1e-5)


def test_a_b_of_zeros_decides_nothing(pair):
    zero = {B.format("q"): torch.zeros(5, 3), A.format("q"): pair[A.format("q")]}
    found = lora_product(zero)
    # ‖B_:i‖ of a B of ones
    torch.testing.assert_close(found[A.format("q")], pair[A.format("q")].abs() * len(pair[B.format("q")]) ** 0.5)
    torch.testing.assert_close(found[B.format("q")], pair[A.format("q")].norm(dim=1).expand(5, 3))
    assert prune(found, Mask.ones(zero), 0.5, scope="global")[B.format("q")].any()
    torch.testing.assert_close(rank_scores(zero)[A.format("q")], pair[A.format("q")].norm(dim=1))


def test_the_weakest_ranks_go_from_both(pair):
    kept = prune_ranks(pair, Mask.ones(pair), 0.34)
    a, b = pair[A.format("q")], pair[B.format("q")]
    effect = torch.stack([torch.linalg.matrix_norm(torch.outer(b[:, i], a[i])) for i in range(3)])
    torch.testing.assert_close(rank_scores(pair)[A.format("q")], effect)
    stays = torch.ones(3, dtype=torch.bool)
    stays[effect.argmin()] = False
    assert torch.equal(kept[A.format("q")], stays.view(3, 1).expand(3, 4))
    assert torch.equal(kept[B.format("q")], stays.expand(5, 3))
    again = prune_ranks(pair, kept, 0.5)
    assert again[A.format("q")].any(1).sum() == 2 - round(0.5 * 2) and (again & kept) == again


def test_ranks_over_all_modules_or_in_each():
    strong = {A.format("q"): torch.ones(4, 3), B.format("q"): torch.ones(3, 4)}
    weak = {A.format("v"): torch.ones(4, 3) * 0.1, B.format("v"): torch.ones(3, 4)}
    weights = {**strong, **weak}
    everywhere = prune_ranks(weights, Mask.ones(weights), 0.5, scope="global")
    assert everywhere[A.format("q")].all() and not everywhere[B.format("v")].any()
    each = prune_ranks(weights, Mask.ones(weights), 0.5, scope="layer")
    assert all(each[name].count_nonzero() == 6 for name in weights)
    with pytest.raises(ValueError, match="different pruning rates"):
        prune_ranks(weights, Mask.ones(weights), 0.5, rates={A.format("q"): 0.1})


def test_adapters_that_peft_makes():
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=7)
    )
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "embed_tokens"])
    adapter = get_peft_model(model, config)
    weights = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    pairs = require_lora(weights)
    assert len(pairs) == 3 and sorted(name for pair in pairs for name in pair) == sorted(weights)
    assert all("lora_A" in a or "lora_embedding_A" in a for a, _ in pairs)
    kept = prune_ranks(weights, Mask.ones(weights), 0.25)
    assert kept.count() == 0.75 * kept.numel()
    found = lora_product(weights)
    assert all(found[name].shape == w.shape and found[name].isfinite().all() for name, w in weights.items())


def test_names_that_are_no_pair(pair):
    with pytest.raises(ValueError, match=r"'layer\.weight' is not a LoRA's A or B"):
        require_lora([*pair, "layer.weight"])
    with pytest.raises(ValueError, match=r"'m.q.lora_A.default.weight' is half of a LoRA and .*lora_B"):
        require_lora([A.format("q")])
