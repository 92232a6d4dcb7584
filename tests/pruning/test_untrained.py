"""A LoRA is not pruned by how it starts: what is refused before and after too little training, and what is not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import TrainingArguments

from hf_lottery import LotteryConfig, LotteryTrainer, Mask
from hf_lottery.pruning.selection.select import prune
from hf_lottery.pruning.untrained import require_trained_lora
from hf_lottery.runner.adapters import add_adapter
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset
from hf_lottery.ticket.rewind_point import RewindPoint
from tests import tiny_lm

ALL_ZERO = r"lora_B.* is all zeros, as before training"
BY_ORDER = "the order of its weights would decide which are pruned"


def lora(folder, modules=("q_proj", "v_proj"), lora=None, **lottery) -> LotteryTrainer:
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=list(modules), task_type="CAUSAL_LM", **(lora or {}))
    args = TrainingArguments(
        folder, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True, disable_tqdm=True,
        report_to="none", save_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    rows = torch.randint(1, 256, (8, 12), generator=torch.Generator().manual_seed(0)).tolist()
    data = TokenDataset([{"input_ids": row, "labels": row} for row in rows])
    model = add_adapter(tiny_lm.model(), adapter, seed=1)
    config = LotteryConfig(**{"pruning_rate": 0.25, **lottery})
    return LotteryTrainer(model, args, PaddingCollator(0), data, lottery_config=config)


# --- before training ---


@pytest.mark.parametrize(
    "lottery",
    [
        {"scope": "layer"},
        {"scope": "layer", "pruning_rate": 0.5},
        {"scope": "uniform"},
        {"scope": "erk", "pruning_rate": 0.5},
        {"scope": "layer", "pattern": "2:4"},
        {"scope": "layer", "pattern": "neuron"},
    ],
)
def test_ties_do_not_take_the_first_part_of_an_untrained_b(tmp_path, lottery):
    trainer = lora(tmp_path, **lottery)
    with pytest.raises(ValueError, match=f"{ALL_ZERO}, so that {BY_ORDER}: train first.*use criterion lora_product"):
        trainer.prune()
    assert trainer.mask.density() == 1


def test_scope_global_does_not_take_all_of_an_untrained_b(tmp_path):
    trainer = lora(tmp_path, scope="global", pruning_rate=0.5)
    with pytest.raises(ValueError, match=f"{ALL_ZERO}, so that scope global would prune all of it: train first"):
        trainer.prune()


@pytest.mark.parametrize("scope", ["layer", "global", "uniform"])
@pytest.mark.parametrize("criterion", ["snip", "movement", "wanda", "magnitude_increase"])
def test_scores_that_are_all_zero_prune_nothing(tmp_path, criterion, scope):
    trainer = lora(tmp_path, criterion=criterion, scope=scope, pruning_rate=0.5)
    trainer.rewinding.point = RewindPoint.capture(trainer.model)
    with pytest.raises(ValueError, match=f"criterion {criterion} gives every weight of .* the score 0, .*train first"):
        trainer.prune()
    assert trainer.mask.density() == 1


def test_large_init_needs_a_rewind_point_at_which_b_is_not_zero(tmp_path):
    with pytest.raises(ValueError, match="lora_B.* is all zeros at rewind step 0.*set rewind_step to a later step"):
        lora(tmp_path, criterion="large_init")


@pytest.mark.parametrize("scope", ["layer", "global", "erk", "uniform"])
def test_a_tensor_of_zeros_that_is_not_pruned_is_not_refused(tmp_path, scope):
    mask = lora(tmp_path, scope=scope, pruning_rates={"lora_B": 0.0}).prune()
    assert all(kept.all() == ("lora_B" in name) for name, kept in mask.items())


def test_erk_that_keeps_all_of_the_small_b_is_not_refused(tmp_path):
    mask = lora(tmp_path, modules=["v_proj"], scope="erk", pruning_rate=0.1).prune()
    assert all(kept.all() == ("lora_B" in name) for name, kept in mask.items())


@pytest.mark.parametrize("scope", ["layer", "global", "erk", "uniform"])
def test_lora_product_needs_no_training(tmp_path, scope):
    mask = lora(tmp_path, scope=scope, criterion="lora_product", pruning_rate=0.5).prune()
    assert mask.density() == 0.5


# --- after training ---


def test_too_little_training_does_not_let_scope_global_take_all_of_b(tmp_path):
    trainer = lora(tmp_path, scope="global", pruning_rate=0.5)
    trainer.args.learning_rate = 1e-5
    trainer.train()
    assert all(weight.any() for weight in trainer.prunable_weights().values())
    with pytest.raises(ValueError, match="would leave .*lora_B.* and 50.00% of the LoRA: .*, or scope layer"):
        trainer.prune()
    assert trainer.mask.density() == 1


def test_a_few_rounds_of_too_little_training_do_not_either(tmp_path):
    trainer = lora(tmp_path, scope="global", pruning_rate=0.2)
    trainer.args.learning_rate = 1e-5
    trainer.train()
    with pytest.raises(ValueError, match="would leave .*lora_B"):
        for _ in range(4):  # B is less than half of the weights: it is gone after the fourth
            trainer.prune()


@pytest.mark.parametrize(
    "lottery",
    [
        {"scope": "layer"},
        {"scope": "global"},
        {"scope": "erk"},
        {"scope": "global", "criterion": "movement"},
        {"scope": "layer", "pattern": "2:4"},
        {"scope": "layer", "pattern": "neuron"},
        {"scope": "layer", "criterion": "snip"},
    ],
)
def test_a_trained_lora_is_pruned(tmp_path, lottery):
    trainer = lora(tmp_path, **lottery)
    trainer.train()
    assert trainer.prune().density() == (0.5 if lottery.get("pattern") == "2:4" else 0.75)


def test_an_adapter_of_embeddings_that_met_some_tokens_is_pruned(tmp_path):
    names = [f"lora_embedding_{letter}.default" for letter in "AB"]
    trainer = lora(tmp_path, modules=["embed_tokens"], target_modules=names, pruning_rate=0.2, scope="layer")
    trainer.train()
    zeros = [int((weight == 0).sum()) for name, weight in trainer.prunable_weights().items() if "embedding_A" in name]
    assert zeros and all(zeros)  # tokens of no row
    mask = trainer.prune()
    assert mask.count() == sum(kept.numel() - round(0.2 * kept.numel()) for kept in mask.values())


# --- scores alone ---


def compared(scores, rate, scope="layer", alive=None, **lottery):
    alive = Mask.ones(scores) if alive is None else alive
    after = prune(scores, alive, rate, scope=scope, key=torch.abs)
    config = LotteryConfig(pruning_rate=rate, scope=scope, **lottery)
    require_trained_lora(scores, torch.abs, alive, after, config, {})
    return after


def pair(a, b, module="q_proj"):
    return {f"{module}.lora_A.default.weight": a, f"{module}.lora_B.default.weight": b}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equal_steps_are_no_order():
    """After one step of Adam or Lion in half precision all of B has the same size."""
    b = (draw(32, 4, seed=1).sign() * 1e-4).bfloat16()
    with pytest.raises(ValueError, match="128 of the 128 weights left in 'q_proj.lora_B.* have the same score"):
        compared(pair(draw(4, 16), b), 0.2)


def test_ties_of_half_precision_are_no_matter():
    compared(pair(draw(16, 64).bfloat16(), draw(64, 16, seed=1).bfloat16()), 0.2)
    few = {name: weight.flatten()[:6].view(2, 3) for name, weight in pair(torch.ones(4, 4), torch.ones(4, 4)).items()}
    compared(few, 0.2)  # six equal weights are too few to say


def test_a_whole_search_of_comparable_scores_goes_on_to_two_percent():
    scores = {}
    for index, module in enumerate(["q_proj", "v_proj", "down_proj"]):
        scores |= pair(draw(8, 64, seed=index), draw(64, 8, seed=9 + index) * 0.8, module)
    mask = Mask.ones(scores)
    while mask.density() > 0.02:
        mask = compared(scores, 0.2, "global", mask)


def test_one_module_that_learned_less_is_told_from_a_b_that_did_not_learn():
    scores = pair(draw(8, 64), draw(64, 8, seed=1)) | pair(draw(8, 64, seed=2), draw(64, 8, seed=3) * 0.2, "v_proj")
    compared(scores, 0.2, "global")
    for name in scores:
        scores[name] = scores[name] * (1e-3 if "lora_B" in name else 1.0)
    with pytest.raises(ValueError, match=r"would leave 0\.\d\d% of 'q_proj\.lora_B.*, and 50\.00% of the LoRA"):
        compared(scores, 0.5, "global")
    with pytest.raises(ValueError, match=r"would leave 0\.00% of 'q_proj\.lora_B.* and the other 1 like it"):
        compared(scores, 0.9, "global")


def test_other_networks_are_not_looked_at():
    compared({"first.weight": torch.zeros(8, 8), "second.weight": torch.ones(8, 8)}, 0.5)
    compared({"first.weight": torch.zeros(8, 8), "second.weight": torch.ones(8, 8)}, 0.5, "global")
