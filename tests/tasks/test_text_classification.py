"""Texts from their files to a Trainer's batches: splits, tokens, padding, and what is said of bad input."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, Trainer, TrainingArguments

from hf_lottery.tasks import text_classification as task
from hf_lottery.tasks.tokenizing import Training, train_tokenizer
from tests.small_sets import BAD, GOOD, model_section, write_texts

TINY = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "set")


def section(folder, **kwargs):
    defaults = {"validation_size": 10, "max_length": 16, "tokenizer": {"train": {"vocab_size": 300}}}
    return task.Data(path=str(folder), **{**defaults, **kwargs})


@pytest.fixture
def pretrained(tmp_path):
    """A folder with a tiny BERT without a head, and its tokenizer."""
    tokenizer = train_tokenizer(GOOD + BAD, Training(vocab_size=300))
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **TINY)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


# --- splits and tokens ----------------------------------------------------------------------------------------------


def test_train_and_validation_share_no_text_and_lose_none(texts):
    data = task.load(section(texts))
    train, validation, test = (
        [data.processing_class.decode(row[:n]).strip() for row, n in zip(*_tokens(split), strict=True)]
        for split in (data.train, data.validation, data.test)
    )
    stored = datasets.load_dataset("parquet", data_files=str(texts / "train.parquet"), split="train")["text"][:]
    assert len(validation) == 10
    assert sorted(train + validation) == sorted(stored)  # byte pairs write every text
    assert test == stored
    # rows are sorted by class on disk; the class went with its text, and validation has both
    assert [label == 1 for label in data.train.tensors["labels"]] == ["splendid" in text for text in train]
    assert data.validation.tensors["labels"].unique().tolist() == [0, 1]


def _tokens(dataset):
    return dataset.tensors["input_ids"], dataset.tensors["attention_mask"].sum(1).tolist()


def test_the_split_follows_from_its_own_seed_alone(texts):
    def held_out(split_seed):
        return task.load(section(texts, split_seed=split_seed)).validation.tensors["input_ids"].tolist()

    torch.manual_seed(3)
    first = held_out(0)
    torch.manual_seed(4)
    assert held_out(0) == first
    assert held_out(1) != first


def test_the_test_set_can_be_a_random_part(texts):
    data = task.load(section(texts, test_size=12))
    assert len(data.test) == 12
    assert data.test.tensors["labels"].unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"data\.test_size is 41, but there are 40"):
        task.load(section(texts, test_size=41))


def test_texts_are_cut_at_max_length_and_batches_at_their_longest_text(texts):
    data = task.load(section(texts, max_length=5))
    assert data.train.tensors["input_ids"].shape == (30, 5)
    data = task.load(section(texts, max_length=60))
    lengths = data.train.tensors["attention_mask"].sum(1)
    short = lengths.argsort()[:4].tolist()
    (batch,) = data.train.__getitems__(short)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, int(lengths[short].max()))
    assert batch["input_ids"].shape[1] < lengths.max()
    assert torch.equal(batch["attention_mask"].sum(1), lengths[short])
    padding = batch["attention_mask"] == 0
    assert (batch["input_ids"][padding] == data.processing_class.pad_token_id).all()


def test_a_batch_and_its_texts_alone_have_the_same_logits(texts):
    data = task.load(section(texts))
    model = task.build_model(model_section(architecture="small-transformer", config=TINY), data, seed=0).eval()
    (batch,) = data.train.__getitems__(list(range(30)))
    together = model(**batch).logits
    for i in range(30):
        (alone,) = data.train.__getitems__([i])
        torch.testing.assert_close(model(**alone).logits[0], together[i])


def test_an_empty_text_is_one_token_of_padding(tmp_path):
    folder = write_texts(tmp_path / "set", text=["", *["a film"] * 39])
    data = task.load(section(folder))
    assert data.test.tensors["attention_mask"][0].sum() == 1
    model = task.build_model(model_section(architecture="small-transformer", config=TINY), data, seed=0)
    assert model(**data.test.__getitems__([0, 1])[0]).logits.isfinite().all()


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_a_trained_tokenizer_is_the_same_every_time():
    # few words and many ties: tokenizers' WordPiece trainer gives another vocabulary at each of five tries
    pairs = [(a, b) for a in ("film", "actor", "plot", "score") for b in ("good", "bad", "long", "odd")]
    words = [f"{a}{b} {b}{a}s, {a}-{b}" for a, b in pairs]
    first, *others = [train_tokenizer(words, Training(vocab_size=400, min_frequency=1)).get_vocab() for _ in range(5)]
    assert len(first) > 300
    assert all(other == first for other in others)


def test_a_trained_tokenizer_writes_any_text_in_lower_case_and_is_saved_with_the_model(tmp_path):
    tokenizer = train_tokenizer(GOOD + BAD, Training(vocab_size=300))
    for text in ("splendid", "Ünïcödé 漢字 🎬", "tabs\tand\nlines"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text.lower()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded("Splendid acting")["input_ids"] == tokenizer("splendid acting")["input_ids"]
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_it_is_trained_on_the_training_texts_alone(tmp_path):
    words = [f"{'zyx' * (i + 1)} film" for i in range(40)]
    folder = write_texts(tmp_path / "set", text=words)
    data = task.load(section(folder, tokenizer={"train": {"vocab_size": 2000, "min_frequency": 1}}, max_length=64))
    oracle = train_tokenizer([t.strip() for t in _decoded(data)], Training(vocab_size=2000, min_frequency=1))
    assert data.processing_class.get_vocab() == oracle.get_vocab()


def _decoded(data):
    return [data.processing_class.decode(row[:n]) for row, n in zip(*_tokens(data.train), strict=True)]


def test_the_tokenizer_is_the_models_own_unless_the_data_name_one(texts, pretrained):
    model = model_section(name_or_path=str(pretrained))
    data = task.load(section(texts, tokenizer=None), model)
    assert data.processing_class.get_vocab() == AutoTokenizer.from_pretrained(pretrained).get_vocab()
    named = task.load(section(texts, tokenizer=str(pretrained)), model_section(architecture="small-transformer"))
    assert torch.equal(named.train.tensors["input_ids"], data.train.tensors["input_ids"])


def test_a_tokenizer_without_padding_is_refused_until_a_token_is_named(texts, pretrained):
    settings = json.loads((pretrained / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    settings["eos_token"] = "film"
    (pretrained / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"no padding token.*set data\.pad_token to one of its tokens, such as 'film'"
    ):
        task.load(section(texts, tokenizer=str(pretrained)))
    with pytest.raises(ValueError, match=r"data\.pad_token is 'nope', which the tokenizer does not have"):
        task.load(section(texts, tokenizer=str(pretrained), pad_token="nope"))
    data = task.load(section(texts, tokenizer=str(pretrained), pad_token="[PAD]"))
    assert data.processing_class.pad_token == "[PAD]"


# --- models and a Trainer -------------------------------------------------------------------------------------------


def test_the_model_has_a_row_for_every_token_and_a_class_for_every_label(texts):
    data = task.load(section(texts))
    model = task.build_model(model_section(architecture="small-transformer", config=TINY), data, seed=0)
    assert model.embeddings.num_embeddings == len(data.processing_class)
    assert model.classifier.out_features == 2


def test_a_pretrained_encoder_keeps_its_weights_and_gets_a_head_by_the_seed(texts, pretrained):
    model = model_section(name_or_path=str(pretrained))
    data = task.load(section(texts, tokenizer=None), model)
    first, again, other = (task.build_model(model, data, seed) for seed in (0, 0, 1))
    stored = BertModel.from_pretrained(pretrained).state_dict()
    for network in (first, other):
        assert all(torch.equal(network.bert.state_dict()[name], value) for name, value in stored.items())
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_plain_trainer_learns_which_reviews_are_good(texts, tmp_path):
    data = task.load(section(texts))
    model = task.build_model(model_section(architecture="small-transformer", config=TINY), data, seed=0)
    args = TrainingArguments(
        tmp_path / "out", max_steps=60, per_device_train_batch_size=10, learning_rate=1e-2, use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        model,
        args,
        data.collator,
        data.train,
        {"validation": data.validation, "test": data.test},
        processing_class=data.processing_class,
        compute_metrics=data.compute_metrics,
        preprocess_logits_for_metrics=data.preprocess_logits_for_metrics,
    )
    trainer.train()
    assert trainer.evaluate()["eval_test_accuracy"] > 0.9


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kwargs", "message"),
    [
        ({"text": None, "review": ["a"] * 40}, {}, r"no column 'text' but label, review: .* data\.text_column"),
        ({"label": None, "stars": [1] * 40}, {}, r"no column 'label' but text, stars: .* data\.label_column"),
        ({"text": ["a", None, *["b"] * 38]}, {}, "row 1 of .* has None in the column 'text', which is no text"),
        ({"text": list(range(40))}, {}, "row 0 of .* has 0 in the column 'text', which is no text"),
        ({"label": [0, 1, None, *[0] * 37]}, {}, r"row 2 of .* has None in the column 'label'; classes must be whole"),
        ({"label": ["good"] * 40}, {}, "row 0 of .* has 'good' in the column 'label'; classes must be whole numbers"),
        ({"label": [0, -1] * 20}, {}, r"row 1 of .* has label -1; labels must be 0 to 0"),
        ({}, {"tokenizer": None}, r"data\.tokenizer is not set, .* train one with data\.tokenizer=\{train:"),
        ({}, {"tokenizer": "./nowhere"}, r"data\.tokenizer is '\./nowhere', which is no folder with a tokenizer"),
        ({}, {"validation_size": 40}, r"data\.validation_size is 40, of 40 examples"),
    ],
)
def test_bad_input_is_named_in_a_sentence(tmp_path, columns, kwargs, message):
    folder = write_texts(tmp_path / "set", **columns)
    with pytest.raises(ValueError, match=message) as error:
        task.load(section(folder, **kwargs), model_section(architecture="small-transformer"))
    assert "\n" not in str(error.value)


def test_labels_of_the_test_split_must_be_classes_of_the_training_split(tmp_path):
    folder = write_texts(tmp_path / "set")
    write_texts(tmp_path / "other", label=[0, 1, 2, 1] * 10)
    (tmp_path / "other" / "test.parquet").replace(folder / "test.parquet")
    with pytest.raises(ValueError, match=r"row 2 of .* split test, has label 2; labels must be 0 to 1"):
        task.load(section(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 7}, r"the tokenizer has \d+ tokens, but the model's embeddings only 7 rows"),
        ({"num_labels": 1}, r"the data have 2 classes, but model\.config\.num_labels is 1"),
    ],
)
def test_a_model_that_does_not_go_with_the_data_is_refused(texts, config, message):
    data = task.load(section(texts))
    with pytest.raises(ValueError, match=message):
        task.build_model(model_section(architecture="small-transformer", config={**TINY, **config}), data, seed=0)


def test_texts_longer_than_the_models_positions_are_refused(texts, pretrained):
    model = model_section(name_or_path=str(pretrained))
    data = task.load(section(texts, tokenizer=None, max_length=33), model)
    with pytest.raises(ValueError, match=r"data\.max_length is 33, but the model reads at most 32 tokens"):
        task.build_model(model, data, seed=0)
