"""prune_embeddings: whole rows of the token embeddings go, those worth least, and stay zero."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery import LotteryConfig, Mask
from hf_lottery.models.small_transformer import SmallTransformerConfig, SmallTransformerForSequenceClassification
from hf_lottery.pruning.embeddings import prune_rows, token_embeddings
from hf_lottery.pruning.targets import prunable
from tests.tiny import Net, make_trainer

TABLE = "embeddings.weight"


def transformer():
    torch.manual_seed(3)
    shape = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 8, "dropout": 0.0}
    return SmallTransformerForSequenceClassification(SmallTransformerConfig(**shape))


def trainer_of(folder, **lottery):
    ids = torch.randint(0, 20, (32, 5), generator=torch.Generator().manual_seed(0))
    train = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    config = LotteryConfig(pruning_rate=0.25, prune_embeddings="rows", **lottery)
    return make_trainer(folder, transformer(), train=train, max_steps=3, lottery_config=config)


def test_the_rows_of_least_mean_go_and_no_others():
    scores = torch.tensor([[3.0, 3.0], [0.0, 5.0], [1.0, 1.0], [-9.0, 9.0]])
    alive = torch.tensor([[True, True], [True, True], [True, True], [False, False]])
    kept = prune_rows({"e": scores}, Mask({"e": alive}), 1 / 3, "e")["e"]
    assert kept.tolist() == [[True, True], [True, True], [False, False], [False, False]]
    kept = prune_rows({"e": scores}, Mask({"e": alive}), 1 / 3, "e", rates={"e": 0.0})["e"]
    assert torch.equal(kept, alive)
    kept = prune_rows({"e": scores}, Mask({"e": torch.ones_like(alive)}), 0.25, "e", key=torch.abs)["e"]
    assert kept.all(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("lottery", [{}, {"scope": "global"}, {"pattern": "2:4"}, {"pattern": "head"}])
def test_rows_are_pruned_beside_any_scope_and_pattern_and_stay_zero(tmp_path, lottery):
    trainer = trainer_of(tmp_path, **lottery)
    trainer.train()
    worth = trainer.model.embeddings.weight.detach().abs().mean(1)
    mask = trainer.prune()
    expected = worth.argsort()[:5]  # a quarter of 20 rows
    assert sorted((~mask[TABLE].any(1)).nonzero().flatten().tolist()) == sorted(expected.tolist())
    assert mask[TABLE].any(1).equal(mask[TABLE].all(1))
    others = {name: int((~keep).sum()) for name, keep in mask.items() if name != TABLE}
    sizes = {name: mask[name].numel() for name in others}
    expected = {
        "global": round(0.25 * sum(sizes.values())),
        "2:4": sum(sizes.values()) // 2,
        "head": 4 * 64 // 4,  # one of four heads, from four projections
    }.get(lottery.get("scope", lottery.get("pattern")), sum(round(0.25 * size) for size in sizes.values()))
    assert sum(others.values()) == expected

    trainer.rewind()
    trainer.train()
    assert not trainer.model.embeddings.weight[~mask[TABLE]].any()
    assert trainer.model.embeddings.weight[mask[TABLE]].all()


def test_the_token_table_alone_is_added_whatever_target_modules_says():
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    assert token_embeddings(bert) == "bert.embeddings.word_embeddings.weight"
    usual = set(prunable(bert))
    assert set(prunable(bert, prune_embeddings="rows")) - usual == {"bert.embeddings.word_embeddings.weight"}
    assert not any("embeddings" in name for name in usual)
    chosen = set(prunable(bert, ["query"], prune_embeddings="rows"))
    assert chosen == {
        "bert.encoder.layer.0.attention.self.query.weight", "bert.embeddings.word_embeddings.weight",
    }  # fmt: skip


def test_networks_and_criteria_that_it_is_not_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a Net has no token embeddings to train: leave it out"):
        make_trainer(tmp_path, Net(), lottery_config=LotteryConfig(prune_embeddings="rows"))
    with pytest.raises(ValueError, match="criterion synflow cannot score embeddings"):
        LotteryConfig(prune_embeddings="rows", criterion="synflow")
    with pytest.raises(ValueError, match="prune_embeddings is 'row'; it must be one of rows"):
        LotteryConfig(prune_embeddings="row")
