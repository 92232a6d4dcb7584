"""Padding never counts: norms of padded batches are those of the same examples alone, without padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hf_lottery import LotteryConfig
from hf_lottery.models.small_transformer import SmallTransformerConfig, SmallTransformerForSequenceClassification
from hf_lottery.pruning.synflow import one_example_of_ones
from hf_lottery.pruning.unpadded import unpadded
from hf_lottery.pruning.wanda import input_norms
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset, pack
from tests import tiny_lm
from tests.tiny import make_trainer

VOCABULARY = 50
LENGTHS = (3, 7, 7, 1, 5)
ANSWERS = (4, 2, 6, 3, 1)
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def rows(lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=draw) for length in lengths]


def padded(tensors, value=0, left=False):
    side = "left" if left else "right"
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def masks(tensors, left=False):
    return padded([torch.ones_like(row, dtype=torch.long) for row in tensors], left=left)


class Flattened(nn.Module):
    """Reshapes hidden states to fewer dimensions, and picks the last token of each row by the mask."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, 8)
        self.inner, self.norm, self.classifier = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embeddings(input_ids)
        hidden = self.norm(torch.relu(self.inner(hidden.flatten(0, 1)))).view_as(hidden)
        last = torch.full((len(hidden),), hidden.shape[1] - 1)
        if attention_mask is not None:
            last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
        return {"logits": self.classifier(hidden[torch.arange(len(hidden)), last])}


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes, **no_dropout))


def small_transformer():
    config = SmallTransformerConfig(VOCABULARY, 16, 2, 4, 24, dropout=0.0)
    return SmallTransformerForSequenceClassification(config)


def mixture():
    config = Qwen2MoeConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config)


ENCODERS = {"bert": bert, "small_transformer": small_transformer, "mixture": mixture, "flattened": Flattened}
GPT2_SIZES = {
    "vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
DECODERS = {
    "llama": lambda: tiny_lm.model(vocab_size=VOCABULARY),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)),
}


def t5():
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def bart():
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None, **NO_DROPOUT,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def linear_weights(model):
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def norms_one_by_one(model, names, calls):
    """The oracle: forward passes of single examples, squares added up by a hook of its own."""
    squares, hooks = dict.fromkeys(names, 0.0), []
    for name in names:

        def add(_, inputs, name=name):
            squares[name] = squares[name] + inputs[0].double().reshape(-1, inputs[0].shape[-1]).square().sum(0)

        hooks.append(model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(add))
    with torch.no_grad():
        for call in calls:
            model(**call)
    for hook in hooks:
        hook.remove()
    return {name: total.sqrt() for name, total in squares.items()}


def compare(model, batches, calls, names=None):
    names = linear_weights(model) if names is None else names
    found = input_norms(model, names, lambda batch: model(**batch), batches)
    expected = norms_one_by_one(model, names, calls)
    assert names
    for name in names:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_layer_behind_a_padded_text(kind):
    torch.manual_seed(0)
    texts = rows(LENGTHS)
    labels = torch.tensor([0, 1, 0, 1, 1])
    batch = {"input_ids": padded(texts), "attention_mask": masks(texts), "labels": labels}
    if kind == "mixture":
        batch["labels"] = padded(texts, -100)
    compare(ENCODERS[kind](), [batch], [{"input_ids": text[None]} for text in texts])


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_language_model_padded_on_either_side(kind, left):
    torch.manual_seed(0)
    texts = rows(LENGTHS)
    batch = {
        "input_ids": padded(texts, 9, left),  # a token of the vocabulary, as eos is
        "attention_mask": masks(texts, left),
        "labels": padded(texts, -100, left),
    }
    model = DECODERS[kind]()
    names = [name for name in linear_weights(model) if "lm_head" not in name]
    compare(model, [batch, batch], 2 * [{"input_ids": text[None]} for text in texts], names or ["lm_head.weight"])


@pytest.mark.parametrize("decoder_mask", [True, False])
@pytest.mark.parametrize("make", [t5, bart])
@pytest.mark.parametrize("answers", [ANSWERS, LENGTHS[::-1]])  # the latter as long as the texts, in another order
def test_an_encoder_and_a_decoder_are_padded_each_by_itself(make, decoder_mask, answers):
    torch.manual_seed(0)
    model, texts, targets = make(), rows(LENGTHS), rows(answers, seed=1)
    batch = {"input_ids": padded(texts), "attention_mask": masks(texts), "labels": padded(targets, -100)}
    if decoder_mask:
        batch["decoder_attention_mask"] = masks(targets)
    calls = [{"input_ids": a[None], "labels": b[None]} for a, b in zip(texts, targets, strict=True)]
    compare(model, [batch], calls)


def test_audio():
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24, conv_dim=(8, 8),
        conv_kernel=(3, 3), conv_stride=(2, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=3,
        num_conv_pos_embedding_groups=2, hidden_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0,
        apply_spec_augment=False, classifier_proj_size=8, feat_extract_norm="layer", **NO_DROPOUT,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config)
    waves = [torch.randn(length) for length in (40, 60, 33)]
    batch = {"input_values": padded(waves), "attention_mask": masks(waves), "labels": torch.tensor([0, 1, 0])}
    compare(model, [batch], [{"input_values": wave[None]} for wave in waves])


def test_packed_rows_have_padding_without_a_mask():
    examples = [{"input_ids": row.tolist(), "labels": [-100, *row.tolist()[1:]]} for row in rows((6, 5, 9, 4, 3))]
    packed = pack(examples, 11)
    assert len({len(row["input_ids"]) for row in packed}) > 1
    model = tiny_lm.model(vocab_size=VOCABULARY)
    model.config.use_cache = False  # as Trainer sets it
    batch = PaddingCollator(0)(packed)
    assert "attention_mask" not in batch
    names = [name for name in linear_weights(model) if "lm_head" not in name]
    compare(model, [batch], [{"input_ids": torch.tensor([row["input_ids"]])} for row in examples], names)


def test_a_mask_is_the_same_with_and_without_padding(tmp_path):
    texts = rows((3, 9, 4, 8, 2, 6, 5, 7))
    data = TokenDataset([{"input_ids": text.tolist(), "labels": text.tolist()} for text in texts])
    masks_of = {}
    for size in (8, 1):
        config = LotteryConfig(criterion="wanda", pruning_rate=0.5, scope="global")
        trainer = make_trainer(
            tmp_path / str(size), tiny_lm.model(), train=data, lottery_config=config, per_device_train_batch_size=size,
            remove_unused_columns=False,
        )  # fmt: skip
        trainer.data_collator = PaddingCollator(0)
        masks_of[size] = trainer.prune()
    assert masks_of[8] == masks_of[1]


def test_a_batch_without_padding_is_run_as_it_is():
    texts = rows((4, 4))
    batch = {"input_ids": padded(texts), "attention_mask": masks(texts)}
    assert [part is batch for part in unpadded(batch)] == [True]
    image = torch.randn(2, 3)
    assert [part is image for part in unpadded(image)] == [True]


def test_an_example_of_padding_alone_is_left_out():
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}
    assert [part["input_ids"].shape for part in unpadded(batch)] == [(1, 2)]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"attention_mask": torch.ones(2, 1, 3, 3)}, r"attention_mask is of shape \(2, 1, 3, 3\).*give one of shape"),
        ({"attention_mask": torch.tensor([[1, 0]]), "input_features": torch.ones(1, 8, 2)}, "no input has the 2"),
        (
            {"attention_mask": torch.tensor([[1, 0], [1, 1]]), "input_ids": torch.ones(2, 2), "pixels": torch.ones(5)},
            r"'pixels' of shape \(5,\) does not have a row for each of the batch's 2",
        ),
    ],
)
def test_padding_that_cannot_be_cut_off_is_said(batch, said):
    with pytest.raises(ValueError, match=said):
        list(unpadded(batch))


def test_an_example_of_a_network_with_batch_norm_is_not_run_alone():
    class Normed(Flattened):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

    texts, model = rows(LENGTHS), Normed()
    batch = {"input_ids": padded(texts), "attention_mask": masks(texts)}
    with pytest.raises(ValueError, match="a Normed normalises over the batch.*use batches without padding"):
        input_norms(model, ["inner.weight"], lambda batch: model(**batch), [batch])


def test_synflows_example_is_as_long_as_the_first_text_without_its_padding():
    texts = rows(LENGTHS)
    for left in (False, True):
        batch = {"input_ids": padded(texts, left=left), "attention_mask": masks(texts, left)}
        assert one_example_of_ones(bert(), batch)["inputs_embeds"].shape == (1, LENGTHS[0], 16)
    waves = [torch.randn(length) for length in (4, 6)]
    ones = one_example_of_ones(nn.Linear(1, 1), {"input_values": padded(waves), "attention_mask": masks(waves)})
    assert ones["input_values"].shape == (1, 4)
