"""A text task's tokenizer: from the Hub or a folder, or trained on the data, so that no network is needed."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_lottery.tasks.building import locate


class Training(BaseModel):
    """How a tokenizer is trained."""

    model_config = ConfigDict(extra="forbid")

    vocab_size: int = Field(8000, gt=256, description="Tokens; the 256 bytes are among them.")
    min_frequency: int = Field(2, ge=1, description="How often a pair must be seen to become a token.")


class TrainTokenizer(BaseModel):
    """`tokenizer: {train: {vocab_size: 8000}}`."""

    model_config = ConfigDict(extra="forbid")

    train: Training


def load_tokenizer(
    name_or_path: str, key: str, revision: str | None = None, gguf_file: str | None = None
) -> PreTrainedTokenizerBase:
    """A pretrained tokenizer.

    Args:
        name_or_path: Hub id, folder, or `package:NAME/FOLDER`.
        key: the recipe's key that says so, for the error.
        revision, gguf_file: as for the model.

    Raises:
        ValueError: there is none, or the Hub cannot be reached.
    """
    options = {"revision": revision, "gguf_file": gguf_file}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return AutoTokenizer.from_pretrained(locate(name_or_path), trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no tokenizer could be had for {key}={name_or_path!r}: check name and network, give a folder, or train "
            "one on the data with data.tokenizer={train: {vocab_size: 8000}}"
        ) from error


def train_tokenizer(texts: Iterable[str], training: Training) -> PreTrainedTokenizerBase:
    """A lower-casing tokenizer of byte pairs, which can write any text; the same for the same texts.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), over bytes as in GPT-2.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Byte pairs, because tokenizers' WordPiece and Unigram trainers give other numbers in every process: a run that
    # is continued would see other tokens than before.
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
    """Make sure that texts can be padded: with `pad_token`, one of the tokenizer's own, where it is given.

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
            "the tokenizer has no padding token, so texts of different lengths make no batch: set data.pad_token to "
            f"one of its tokens, such as {example!r}"
        )
    tokenizer.padding_side = "right"
