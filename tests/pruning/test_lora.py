"""Tickets inside a LoRA: what the mask covers, what it prunes, what is rewound, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from hf_lottery import LotteryConfig, LotteryTrainer, Mask
from hf_lottery.pruning.lora import delta_counts, delta_density, live_ranks, lora_pairs
from hf_lottery.pruning.targets import prunable
from hf_lottery.runner.adapters import add_adapter
from hf_lottery.tasks.instructions import PromptTemplate, tokenise
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset
from hf_lottery.training.search import Search
from tests import tiny_lm

MODULES = ["q_proj", "v_proj"]


def _config(**changes):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": MODULES, "task_type": "CAUSAL_LM", **changes})


def _data():
    rows = [(f"add {i}", "", f"sum {i}") for i in range(8)]
    return TokenDataset(tokenise(rows, PromptTemplate(tiny_lm.tokenizer()), 400)[0])


def _trainer(model, tmp_path, lottery=None, **arguments):
    args = TrainingArguments(
        output_dir=tmp_path / "out",
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        **arguments,
    )
    config = lottery or LotteryConfig(num_rounds=1, pruning_rate=0.25)
    return LotteryTrainer(model, args, data_collator=PaddingCollator(0), train_dataset=_data(), lottery_config=config)


def _adapter_weights(model):
    return {name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def test_delta_is_counted_from_the_masks_as_brute_force_does():
    draw = torch.Generator().manual_seed(0)
    model = get_peft_model(tiny_lm.model(), _config())
    parameters = dict(model.named_parameters())
    names = [name for name in parameters if "lora_" in name and "layers.0" in name]
    mask = Mask({n: torch.rand(parameters[n].shape, generator=draw) < 0.2 for n in names})
    counts = delta_counts(mask, parameters)
    assert len(counts) == len(MODULES)
    for (module, _), (a, b) in lora_pairs(names).items():
        kept = sum(
            any(mask[b][i, k] and mask[a][k, j] for k in range(4))
            for i in range(mask[b].shape[0])
            for j in range(mask[a].shape[1])
        )
        assert counts[module] == (kept, mask[b].shape[0] * mask[a].shape[1])
    kept, total = (sum(column) for column in zip(*counts.values(), strict=True))
    assert delta_density(mask, parameters) == {"delta_density": kept / total}


def test_a_mask_over_b_alone_counts_a_as_kept_and_no_lora_has_no_delta():
    model = get_peft_model(tiny_lm.model(), _config())
    parameters = dict(model.named_parameters())
    b = next(name for name in parameters if "lora_B" in name)
    kept = torch.zeros(parameters[b].shape, dtype=torch.bool)
    kept[3, 1] = True
    (counts,) = delta_counts(Mask({b: kept}), parameters).values()
    assert counts == (16, 16 * parameters[b].shape[0])  # one row of ΔW, as wide as A
    assert delta_density(Mask({"x": torch.ones(2, dtype=torch.bool)}), {"x": torch.ones(2)}) == {}


def test_an_embeddings_adapter_counts_as_every_other():
    model = get_peft_model(tiny_lm.model(), _config(target_modules=["embed_tokens"]))
    parameters = dict(model.named_parameters())
    (((module, adapter), (a, b)),) = lora_pairs(parameters).items()
    assert module.endswith("embed_tokens") and adapter == "default"
    kept = torch.zeros(parameters[a].shape, dtype=torch.bool)
    kept[2, :5] = True  # one rank, five tokens
    assert delta_counts(Mask({a: kept}), parameters) == {
        module: (5 * parameters[b].shape[0], parameters[a].shape[1] * parameters[b].shape[0])
    }


def test_a_rank_lives_while_both_its_row_and_its_column_do():
    a = torch.tensor([[1, 0], [0, 0], [1, 1]], dtype=torch.bool)
    b = torch.tensor([[1, 1, 0], [0, 1, 0]], dtype=torch.bool)
    assert live_ranks(a, b).tolist() == [True, False, False]


VARIANTS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_search_prunes_a_and_b_and_rewinds_the_adapter_alone(variant, tmp_path):
    base = tiny_lm.model(tie_word_embeddings=False)
    frozen = {name: p.clone() for name, p in base.named_parameters()}
    model = add_adapter(base, _config(**VARIANTS[variant]), seed=1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = _trainer(model, tmp_path)
    assert set(trainer.mask) == _adapter_weights(model)

    ticket = trainer.find_ticket()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers()).keys()
    assert set(ticket.rewind.tensors) == trainable | buffers
    for name, (kept, total) in ticket.mask.counts().items():
        assert kept == total - round(0.25 * total), name
    for name, value in ticket.rewind.tensors.items():
        if name in start:
            assert torch.equal(value, start[name]), name
    state = dict(model.named_parameters())
    for name, kept in ticket.mask.items():
        assert state[name][~kept].count_nonzero() == 0
        # B's kept entries started at 0, and train all the same
        assert (state[name][kept] != start[name][kept]).any(), name
    for name, value in frozen.items():
        plain = [p for full, p in state.items() if full.replace(".base_layer", "").endswith(f"model.{name}")]
        assert any(torch.equal(p, value) for p in plain) or "lm_head" in name, name
    results = Search(trainer).round_folder(1).result()
    assert results["kept"] == ticket.mask.count()
    assert results["delta_density"] == delta_density(ticket.mask, state)["delta_density"]


def test_of_several_adapters_the_active_one_is_searched_and_the_other_stays(tmp_path):
    model = add_adapter(tiny_lm.model(), _config(), seed=1)
    model.add_adapter("other", _config(init_lora_weights=False))
    model.set_adapter("default")
    other = {n: p.clone() for n, p in model.named_parameters() if ".other." in n}
    trainer = _trainer(model, tmp_path)
    assert set(trainer.mask) == {n for n in _adapter_weights(model) if ".default." in n}
    trainer.find_ticket()
    assert all(torch.equal(dict(model.named_parameters())[n], value) for n, value in other.items())


@pytest.mark.parametrize(
    "lottery",
    [
        {"scope": "layer", "criterion": "lora_product"},
        {"scope": "global", "criterion": "lora_product"},
        {"scope": "layer", "pattern": "rank"},
        {"scope": "global", "pattern": "rank"},
    ],
)
def test_bs_zeros_before_training_never_wipe_a_tensor(lottery, tmp_path):
    config = LotteryConfig(pruning_rate=0.25, **lottery)
    trainer = _trainer(add_adapter(tiny_lm.model(), _config(), seed=1), tmp_path, config)
    mask = trainer.prune()  # at step 0: every entry of every B is 0
    total = mask.numel()
    if lottery.get("pattern") == "rank":
        ranks = [int(live_ranks(mask[a], mask[b]).sum()) for a, b in lora_pairs(mask).values()]
        assert sum(ranks) == 12
        assert mask.count() == sum(
            r * sum(mask[n].numel() // 4 for n in p) for r, p in zip(ranks, lora_pairs(mask).values(), strict=True)
        )
    else:
        assert mask.count() == total - round(0.25 * total)
    assert all(kept > 0 for kept, _ in mask.counts().values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*use true, gaussian or orthogonal"),
        ({"bias": "all"}, "peft.bias is 'all'.*use none"),
        ({"trainable_token_indices": [1]}, "peft.trainable_token_indices is not supported"),
        ({"target_modules": ["q_prj"]}, "'q_prj' matches no module; the nearest name is 'q_proj'"),
    ],
)
def test_what_a_mask_cannot_be_over_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        add_adapter(tiny_lm.model(), _config(**changes), seed=0)


def test_the_adapter_is_drawn_under_its_seed():
    one, same, other = (add_adapter(tiny_lm.model(), _config(), seed).state_dict() for seed in (1, 1, 2))
    a = next(name for name in one if "lora_A" in name)
    assert torch.equal(one[a], same[a])
    assert not torch.equal(one[a], other[a])


def test_activation_checkpointing_trains_the_same(tmp_path):
    trained = []
    for checkpointing in (False, True):
        model = add_adapter(tiny_lm.model(), _config(), seed=1)
        trainer = _trainer(model, tmp_path / str(checkpointing), activation_checkpointing=checkpointing)
        trainer.train()
        trained.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
    for name, value in trained[0].items():
        assert torch.allclose(value, trained[1][name], atol=1e-6), name
        assert "lora_B" not in name or value.count_nonzero() > 0


def test_a_4_bit_base_is_trained_through_and_is_never_a_target(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_lm.model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization)
    model = add_adapter(base, _config(), seed=1)
    packed = {name: p.clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert packed
    with pytest.raises(ValueError, match=r"quantised, torch.uint8"):
        prunable(model, target_modules=["up_proj"])
    trainer = _trainer(model, tmp_path)
    assert set(trainer.mask) == _adapter_weights(model)
    ticket = trainer.find_ticket()
    state = dict(model.named_parameters())
    assert all(torch.equal(state[name], value) for name, value in packed.items())
    assert all(state[name][~kept].count_nonzero() == 0 for name, kept in ticket.mask.items())
    assert not any(name in ticket.rewind.tensors for name in packed)


def test_an_update_ticket_leaves_pruned_base_weights_at_their_pretrained_values(tmp_path):
    from hf_lottery.runner.network import freeze_all_but_targets

    model = tiny_lm.model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = LotteryConfig(num_rounds=1, pruning_rate=0.9, pruned_value="init", target_modules=["q_proj", "up_proj"])
    freeze_all_but_targets(model, config)
    ticket = _trainer(model, tmp_path, copy.deepcopy(config)).find_ticket()
    assert len(ticket.mask) == 4
    for name, value in model.named_parameters():
        if name not in ticket.mask:
            assert torch.equal(value, start[name]), name
        else:
            kept = ticket.mask[name]
            assert torch.equal(value[~kept], start[name][~kept])
            assert (value[kept] != start[name][kept]).any()
