"""Every criterion and pattern through LotteryTrainer.prune(): exact counts, and what it looks at left as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_lottery import LotteryConfig
from hf_lottery.config import CRITERIA
from hf_lottery.pruning.step import score
from tests.tiny import examples, make_trainer, weights


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "lora_product"])
def test_a_criterion_removes_exactly_its_share_twice_and_changes_nothing_it_looks_at(tmp_path, criterion, scope):
    config = LotteryConfig(criterion=criterion, pruning_rate=0.25, scope=scope)
    trainer = make_trainer(tmp_path, lottery_config=config, max_steps=3)
    trainer.train()
    before = weights(trainer.model)
    first = trainer.prune()
    second = trainer.prune()
    after = weights(trainer.model)
    sizes = {"first.weight": 288, "classifier.weight": 72}
    if scope == "layer":
        for name, total in sizes.items():
            assert int(first[name].sum()) == total - round(total * 0.25)
    assert first.count() == 270 and second.count() == 270 - round(270 * 0.25)
    for name, value in before.items():  # pruned to zero, and nothing else moved, batch norm's buffers included
        assert torch.equal(after[name], value * second[name] if name in second else value)
    assert all(not (second[name] & ~first[name]).any() for name in second)


def test_snip_is_the_gradient_of_a_gate_on_every_weight(tmp_path):
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(criterion="snip"), per_device_train_batch_size=96)
    trainer.model.dropout.p = 0.0
    scores, key = score(trainer.pruning_context())
    data = examples()
    x, labels = torch.stack([e["x"] for e in data]), torch.stack([e["labels"] for e in data])
    gate = torch.ones_like(trainer.model.first.weight, requires_grad=True)
    gated = {"first.weight": trainer.model.first.weight * gate}
    loss = torch.func.functional_call(trainer.model, gated, (x, labels))["loss"]
    (expected,) = torch.autograd.grad(loss, gate)
    assert key is None
    assert torch.allclose(scores["first.weight"], expected.abs(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("pattern, share", [("neuron", 0.25), ("1:4", 0.75), ("2:4", 0.5)])
def test_patterns(tmp_path, pattern, share):
    config = LotteryConfig(pattern=pattern, pruning_rate=0.25, target_modules=["first"])
    trainer = make_trainer(tmp_path, lottery_config=config, max_steps=3)
    trainer.train()
    kept = trainer.prune()["first.weight"]
    assert int((~kept).sum()) == 288 * share
    if pattern == "neuron":
        assert set(kept.sum(1).tolist()) == {0, 12}
    else:
        assert set(kept.view(24, 3, 4).sum(-1).flatten().tolist()) == {int(pattern[0])}


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "wanda"])
def test_criteria_on_a_language_model(tmp_path, criterion):
    tokens = torch.randint(0, 32, (24, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    config = LotteryConfig(criterion=criterion, pruning_rate=0.5, target_modules=["mlp", "self_attn"])
    trainer = make_trainer(tmp_path, tiny_llama(), train=data, lottery_config=config)
    mask = trainer.prune()
    assert mask.density() == 0.5


def test_heads_go_whole(tmp_path):
    config = LotteryConfig(pattern="head", pruning_rate=0.5, target_modules=["self_attn"])
    trainer = make_trainer(tmp_path, tiny_llama(), lottery_config=config)
    mask = trainer.prune()
    rows = mask["model.layers.0.self_attn.q_proj.weight"].view(4, 4, 16)
    assert sorted(head.all().item() for head in rows) == [False, False, True, True]
    assert all(head.all() or not head.any() for head in rows)


def test_what_a_network_does_not_have_is_said(tmp_path):
    for config, model, sentence in (
        (LotteryConfig(pattern="head"), None, "a Net has no attention heads"),
        (LotteryConfig(pattern="head", target_modules=["q_proj"]), tiny_llama(), "k_proj.weight' is not among the"),
        (LotteryConfig(pattern="3:7"), None, "needs 7 to divide the input dimension of 'first.weight', which is 12"),
        (LotteryConfig(pattern="rank"), None, "is not a LoRA's A or B"),
        (LotteryConfig(criterion="wanda", target_modules=["embed_tokens"]), tiny_llama(), "belongs to a Embedding"),
    ):
        with pytest.raises(ValueError, match=sentence):  # when it is made, not after round 0
            make_trainer(tmp_path, model, lottery_config=config)
    trainer = make_trainer(tmp_path, lottery_config=LotteryConfig(criterion="snip"))
    trainer.train_dataset = None
    with pytest.raises(ValueError, match="looks at data, and the trainer has no train_dataset"):
        trainer.prune()
    with pytest.raises(RuntimeError, match="train to the rewind step first"):
        make_trainer(tmp_path, lottery_config=LotteryConfig(criterion="movement")).prune()
