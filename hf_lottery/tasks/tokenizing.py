"""The tokenizer of a text task: from the Hub, from a folder, or trained on the data (which needs no network)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_lottery.tasks.building import locate


class Training(BaseModel):
    """How a tokenizer is trained."""

    model_config = ConfigDict(extra="forbid")

    vocab_size: int = Field(8000, gt=256, description="Number of tokens, including the 256 bytes.")
    min_frequency: int = Field(2, ge=1, description="How often a pair must occur to become a token.")


class TrainTokenizer(BaseModel):
    """`tokenizer: {train: {vocab_size: 8000}}`."""

    model_config = ConfigDict(extra="forbid")

    train: Training


def load_tokenizer(name: str | None, model: Any, instead: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer that `data.tokenizer` names, or the model's own.

    Args:
        name: `data.tokenizer`: a Hub id, a folder, or `package:NAME/FOLDER`. None: the model's own tokenizer.
        model: the recipe's section `model`.
        instead: text added to an error message: another way to get a tokenizer.

    Raises:
        ValueError: no tokenizer is named or found, or the Hub cannot be reached.
    """
    key, options = "data.tokenizer", {}
    if name is None:
        if model is None or model.name_or_path is None:
            raise ValueError(
                "data.tokenizer is not set, and a model.architecture has no tokenizer of its own: name one with "
                f"data.tokenizer, a folder or a Hub id{instead}"
            )
        key, name = "model.name_or_path", model.name_or_path
        options = {"revision": model.revision, "gguf_file": model.gguf_file}
        options = {option: value for option, value in options.items() if value is not None}
    missing = (
        f"{key} is {name!r}, which is no folder with a tokenizer, and it cannot be loaded from the Hub: check the "
        f"name and the network, or give a local folder with data.tokenizer=FOLDER{instead}"
    )
    folder = locate(name, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(missing) from error
    if not tokenizer("a word", add_special_tokens=False).input_ids:  # made from a config alone, it has no tokens
        raise ValueError(missing)
    return tokenizer


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the padding token, else eos, else 0. Padding is not attended to and not in the loss."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id or 0


def train_tokenizer(texts: Iterable[str], training: Training) -> PreTrainedTokenizerBase:
    """Train a lower-casing byte-pair tokenizer, which can encode any text. The same texts give the same tokenizer.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), over bytes as in GPT-2.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Byte pairs, because tokenizers' WordPiece and Unigram trainers number the tokens differently in every process:
    # a resumed run would see other tokens than before.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=training.vocab_size,
        min_frequency=training.min_frequency,
        special_tokens=["[PAD]"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


def require_padding(tokenizer: PreTrainedTokenizerBase, pad_token: str | None) -> None:
    """Set the tokenizer up for padding, with the token `pad_token` where it is given.

    Raises:
        ValueError: the tokenizer has no padding token, or does not have this one.
    """
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ValueError(
                f"data.pad_token is {pad_token!r}, which the tokenizer does not have: name one of its tokens"
                + (f", such as {tokenizer.eos_token!r}" if tokenizer.eos_token else "")
            )
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token is None:
        example = tokenizer.eos_token or next(iter(tokenizer.get_vocab()))
        raise ValueError(
            "the tokenizer has no padding token, so texts of different lengths cannot be put into one batch: set "
            f"data.pad_token to one of its tokens, such as {example!r}"
        )
    tokenizer.padding_side = "right"
