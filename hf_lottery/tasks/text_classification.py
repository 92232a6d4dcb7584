"""Text classification: IMDb and other data sets of texts with one class each, tokenised once, held as tensors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lottery.tasks import TaskData
from hf_lottery.tasks.building import build, require_classes
from hf_lottery.tasks.hub import load_splits, read_labels, require_column, require_folder
from hf_lottery.tasks.tensors import TensorDataset, accuracy, argmax, check_labels, hold_out, subset, take_batch
from hf_lottery.tasks.tokenizing import TrainTokenizer, load_tokenizer, require_padding, train_tokenizer


class Data(BaseModel):
    """A recipe's `data` section for text classification."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["text_classification"] = "text_classification"
    name: str | None = Field(None, description="Hub id, such as stanfordnlp/imdb.")
    path: str | None = Field(None, description="Local folder to read instead: parquet, csv or json files.")
    train_split: str = Field("train", description="The split that training and validation are taken from.")
    test_split: str = Field("test", description="The split that is only measured on.")
    text_column: str = Field("text", description="Column with texts.")
    label_column: str = Field("label", description="Column with classes 0, 1, …")
    validation_size: int = Field(2500, gt=0, description="Examples held out of train.")
    test_size: int | None = Field(None, gt=0, description="Measure on so many examples of the test split; unset, all.")
    split_seed: int = Field(0, description="Which ones are held out; not changed between replicates.")
    max_length: int = Field(128, gt=0, description="Number of tokens read of a text.")
    tokenizer: str | TrainTokenizer | None = Field(
        None, description="Hub id or folder, or {train: {vocab_size: 8000}}; unset, the model's own."
    )
    pad_token: str | None = Field(None, description="The token to pad with, for a tokenizer without padding token.")

    @model_validator(mode="after")
    def _has_source(self):
        if self.name is None and self.path is None:
            raise ValueError("data needs a name (such as stanfordnlp/imdb) or a path (a local folder)")
        return self


def load(data: Data, model_section: Any = None) -> TaskData:
    """Read, split and tokenise the texts.

    Args:
        data: the section.
        model_section: the section `model`, whose tokenizer is used unless `data.tokenizer` says otherwise.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: the data set or tokenizer is not found, a column is missing, or a row has no text or class.
    """
    source = data.name if data.path is None else str(require_folder(data.path))
    tables = load_splits(source, [data.train_split, data.test_split])
    labels, counts = {}, {}
    for split, table in tables.items():
        _check_texts(table, data.text_column, f"{source}, split {split}")
        labels[split], counts[split] = read_labels(table, data.label_column, f"{source}, split {split}")
    classes = counts[data.train_split]
    for split, values in labels.items():
        check_labels(values, classes, f"{source}, split {split},")

    kept, held_out = hold_out(len(labels[data.train_split]), data.validation_size, data.split_seed)
    measured = subset(len(labels[data.test_split]), data.test_size, data.split_seed)
    tokenizer = _tokenizer(data, model_section, tables[data.train_split], kept)

    tensors = {
        split: {**_encode(table, data.text_column, tokenizer, data.max_length), "labels": labels[split]}
        for split, table in tables.items()
    }

    def dataset(split: str, index: Tensor) -> TensorDataset:
        return TensorDataset({name: tensor[index] for name, tensor in tensors[split].items()}, trim, classes)

    return TaskData(
        train=dataset(data.train_split, kept),
        validation=dataset(data.train_split, held_out),
        test=dataset(data.test_split, measured),
        collator=take_batch,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=argmax,
        processing_class=tokenizer,
    )


def build_model(model_section: Any, task_data: TaskData, seed: int) -> PreTrainedModel:
    """The network at θ_0: random weights for the tokenizer's vocabulary, or pretrained ones with a new head.

    Raises:
        ValueError: the model is not found, or does not fit the tokenizer, the length of the texts or the classes.
    """
    tokenizer, train = task_data.processing_class, task_data.train
    config = {"num_labels": train.num_labels, "pad_token_id": tokenizer.pad_token_id}
    if model_section.architecture is not None:
        config["vocab_size"] = len(tokenizer)
    model = build("text_classification", model_section, seed, **config)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's embeddings only {rows} rows: use the model's "
            "own tokenizer (leave data.tokenizer out), or leave model.config.vocab_size out"
        )
    length = train.tensors["input_ids"].shape[1]
    positions = model.config.to_dict().get("max_position_embeddings") or length
    if length > positions:
        raise ValueError(
            f"data.max_length is {length}, but the model reads at most {positions} tokens: "
            f"set data.max_length={positions}"
        )
    require_classes(model, train.num_labels)
    return model


def trim(batch: dict[str, Tensor], indices: Tensor) -> dict[str, Tensor]:
    """Cut the padding after a batch's longest text: input_ids and attention_mask int64 [n, length]."""
    length = int(batch["attention_mask"].sum(1).max())
    cut = {name: batch[name][:, :length] for name in ("input_ids", "attention_mask")}
    return {**batch, **cut}


def _check_texts(table: Any, column: str, where: str) -> None:
    require_column(table, column, "data.text_column", where)
    for row, text in enumerate(table[column]):
        if not isinstance(text, str):
            raise ValueError(
                f"row {row} of {where} has {text!r} in the column {column!r}, which is no text: remove such rows, or "
                "name another column with data.text_column"
            )


def _tokenizer(data: Data, model_section: Any, train: Any, kept: Tensor) -> PreTrainedTokenizerBase:
    if isinstance(data.tokenizer, TrainTokenizer):
        # only on the training texts: validation texts must not influence the network
        texts = train.select(kept.tolist())
        batches = (batch[data.text_column] for batch in texts.iter(batch_size=1000))
        tokenizer = train_tokenizer(batches, data.tokenizer.train)
    else:
        instead = ", or train one with data.tokenizer={train: {vocab_size: 8000}}"
        tokenizer = load_tokenizer(data.tokenizer, model_section, instead)
    require_padding(tokenizer, data.pad_token)
    return tokenizer


def _encode(table: Any, column: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Tensor]:
    """input_ids and attention_mask, int64 [N, max_length]; `datasets` keeps them on disk for the next run."""

    def encode(texts: list[str]) -> dict[str, Any]:
        encoded = tokenizer(texts, truncation=True, max_length=max_length, padding="max_length")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    # `map` stores its result under a fingerprint, which includes the tokenizer's truncation; a first call sets it
    encode([""])
    tokens = table.map(encode, input_columns=column, batched=True, remove_columns=table.column_names)
    tensors = {name: tensor.long() for name, tensor in tokens.with_format("torch")[:].items()}
    # an empty text becomes one token of padding: attention over no token at all is nan
    tensors["attention_mask"][:, 0] = 1
    return tensors
