"""A batch's mean loss times its count of labels adds up: over examples, over batches, over processes."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_lottery.pruning.gradients import tempered_loss
from hf_lottery.pruning.labels import counted_labels
from tests import tiny_lm

BERT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3,
}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
OF_TOKENS = torch.tensor([[-100, 2, 1, 0, -100], [1, -100, -100, -100, -100], [2, 1, 2, 1, 0], [-100] * 5])
OF_TEXTS = torch.tensor([0, 2, 1, -100])

MODELS = {
    "causal": (lambda: tiny_lm.model(vocab_size=50), OF_TOKENS, 3 + 0 + 4 + 0),  # the first label is not predicted
    "tokens": (lambda: BertForTokenClassification(BertConfig(**BERT)), OF_TOKENS, 3 + 1 + 5),
    "masked": (lambda: BertForMaskedLM(BertConfig(**BERT)), OF_TOKENS, 3 + 1 + 5),
    "t5": (lambda: T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)), OF_TOKENS, 3 + 1 + 5),
    "classes": (lambda: BertForSequenceClassification(BertConfig(**BERT)), OF_TEXTS, 3),
    "several classes": (lambda: BertForSequenceClassification(BertConfig(**BERT)), torch.ones(4, 3), 4),
}


@pytest.mark.parametrize("kind", MODELS)
def test_mean_times_count_is_a_sum_over_examples(kind):
    torch.manual_seed(0)
    make, labels, expected = MODELS[kind]
    model = make()
    inputs = torch.randint(1, 50, (4, 5))
    count = counted_labels(model)
    whole = {"input_ids": inputs, "labels": labels}
    rows = [{"input_ids": inputs[i : i + 1], "labels": labels[i : i + 1]} for i in range(4)]
    assert count(whole) == expected == sum(count(row) for row in rows)
    losses = [lambda batch: model(**batch).loss]
    if kind != "several classes":
        losses.append(tempered_loss(model, 3.0))
    with torch.no_grad():
        for loss in losses:
            apart = sum(loss(row) * count(row) for row in rows if count(row))
            torch.testing.assert_close(loss(whole) * count(whole), apart)


def test_the_loss_of_grasp_at_temperature_1_is_the_models_own():
    torch.manual_seed(0)
    for kind, (make, labels, _) in MODELS.items():
        if kind != "several classes":
            model, batch = make(), {"input_ids": torch.randint(1, 50, (4, 5)), "labels": labels}
            torch.testing.assert_close(tempered_loss(model, 1.0)(batch), model(**batch).loss)


def test_without_labels_examples_count():
    assert counted_labels(torch.nn.Linear(1, 1))({"x": torch.zeros(7, 2)}) == 7
    assert counted_labels(torch.nn.Linear(1, 1))((torch.zeros(6, 2), torch.zeros(6))) == 6
