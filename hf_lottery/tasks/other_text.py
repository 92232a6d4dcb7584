"""Text that the task does not hold: how much a network's loss on it rises in training is what it forgets.

The text becomes blocks of a fixed number of tokens, which are the same for every network and in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedTokenizerBase

from hf_lottery.tasks.hub import read_tables, require_column
from hf_lottery.text_blocks import Blocks

KEY = "data.other_text"
TABLES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # ending -> reader of datasets
PLAIN = (".txt",)
CHARACTERS_A_TOKEN = 16  # no more of a long text is read than this allows


class OtherText(BaseModel):
    """`data.other_text` of a recipe. By default the columns and the split are those of wikitext."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, description="Hub id, such as Salesforce/wikitext.")
    config: str | None = Field(None, description="The data set's configuration, such as wikitext-2-raw-v1.")
    path: str | None = Field(None, description="Local file or folder to read instead.")
    split: str | None = Field(None, description="Unset: test, or the only split.")
    column: str = Field("text", description="Column with the text.")
    tokens: int = Field(65536, gt=1, description="How many tokens are measured, from the start of the text.")
    block_length: int = Field(512, gt=1, description="Tokens in a block, each predicted from those before it in it.")

    @model_validator(mode="after")
    def _can_be_read(self):
        if self.name is None and self.path is None:
            raise ValueError(f"{KEY} needs a name (such as Salesforce/wikitext) or a path (a local file or folder)")
        if self.tokens < self.block_length:
            raise ValueError(
                f"{KEY}.tokens is {self.tokens} and {KEY}.block_length is {self.block_length}, so that there is not "
                "one block: raise tokens, or lower block_length"
            )
        return self

    def named(self) -> str:
        """What is measured on, for readers: Salesforce/wikitext, wikitext-2-raw-v1, split test."""
        split = [] if self.split is None else [f"split {self.split}"]
        if self.path is not None:
            return ", ".join([self.path, *split])
        return ", ".join([self.name, *filter(None, [self.config]), *split])


class HubNotReached(ValueError):
    """The text is on the Hub, which cannot be reached now."""


def require_text_is_there(text: OtherText) -> None:
    """Look, without reading it, whether a local text is there and of a kind that is read.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is a file of another kind.
    """
    if text.path is None:
        return
    path = Path(text.path).expanduser()
    if path.is_dir():
        return
    if not path.is_file():
        raise FileNotFoundError(
            f"{KEY}.path is {text.path!r}, and there is no such file or folder: give it by {KEY}.path=FILE, or "
            f"measure no forgetting with {KEY}=null"
        )
    if path.suffix.lower() not in (*PLAIN, *TABLES):
        raise ValueError(
            f"{KEY}.path is {text.path!r}, and no file that ends in {path.suffix!r} is read: give one that ends "
            f"in {', '.join((*PLAIN, *TABLES))}, or a folder of such files"
        )


def read_blocks(text: OtherText, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """Read the text and cut it into blocks without overlap, from its start; what is left over is not used.

    Documents follow one another with an eos token after each. A row is a document, unless it ends in a newline: then
    the next row goes on with it (the rows of wikitext are lines). Empty rows count for nothing. A tokenizer that
    begins every text with a bos token begins every block with it.

    Raises:
        FileNotFoundError: the file or folder is missing.
        HubNotReached: the Hub cannot be reached.
        ValueError: the text cannot be read, lacks the column, or is too short.
    """
    require_text_is_there(text)
    first, length = _first_tokens(tokenizer), text.block_length
    if len(first) >= length:
        raise ValueError(
            f"{KEY}.block_length is {length}, which leaves no token after the tokenizer's first: raise it"
        )
    fresh = length - len(first)  # tokens of the text in a block
    wanted, ids = text.tokens // length * fresh, []
    for piece, ends in _pieces(_rows(text), text.tokens * CHARACTERS_A_TOKEN):
        ids += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        if ends and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if len(ids) >= wanted:
            break
    blocks = len(ids) // fresh
    if len(ids) < wanted:
        shorter = f"set {KEY}.tokens={blocks * length}, or give" if blocks else "give"
        raise ValueError(
            f"{text.named()} has {len(ids):,} tokens, and {KEY}.tokens asks for {text.tokens:,}: {shorter} more text"
        )
    return Blocks(text.named(), [first + ids[i : i + fresh] for i in range(0, wanted, fresh)])


def _first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer begins every text with: its bos token, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and list(tokenizer("a").input_ids[:1]) == [bos] else []


def _pieces(rows: Iterable[str], most: int) -> Iterator[tuple[str, bool]]:
    """The documents as (text, whether the document ends with it); a piece is cut off at `most` characters."""
    parts, size = [], 0
    for row in rows:
        for start in range(0, len(row), most):
            part = row[start : start + most]
            ends = start + most >= len(row) and not row.endswith("\n")
            parts.append(part)
            size += len(part)
            if ends or size >= most:
                yield "".join(parts), ends
                parts, size = [], 0
    if parts:
        yield "".join(parts), True


def _rows(text: OtherText) -> Iterable[str]:
    """The texts of all rows, without the empty ones; a plain text file is one row."""
    if (files := _plain_files(text)) is not None:
        rows = ((path.name, _content(path)) for path in files)
    else:
        table, where = _table(text)
        require_column(table, text.column, f"{KEY}.column", where)
        rows = ((f"row {i} of {where}", table[i][text.column]) for i in range(len(table)))
    for where, row in rows:
        if row is not None and not isinstance(row, str):
            raise ValueError(
                f"{where} has {row!r:.80} in the column {text.column!r}, which is no text: name the column with text "
                f"by {KEY}.column"
            )
        if row and row.strip():
            yield row


def _plain_files(text: OtherText) -> list[Path] | None:
    """The plain text files that are read; None if it is a table that is read."""
    if text.path is None:
        return None
    path = Path(text.path).expanduser()
    if path.is_file():
        return [path] if path.suffix.lower() in PLAIN else None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    tables = any(file.suffix.lower() in TABLES for file in files)
    return None if tables else [file for file in files if file.suffix.lower() in PLAIN] or None


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): convert it, or give another {KEY}.path") from error


def _table(text: OtherText) -> tuple[Any, str]:
    """The split to read, and its name for messages."""
    if text.path is not None:
        path = Path(text.path).expanduser()
        if path.is_file():
            tables = read_tables(TABLES[path.suffix.lower()], KEY, file=str(path))
        else:
            tables = read_tables(str(path), KEY)
    else:
        tables = _from_hub(text)
    split = text.split or ("test" if "test" in tables else next(iter(tables)) if len(tables) == 1 else None)
    if split not in tables:
        what = "has several splits," if split is None else f"has no split {split!r} but"
        raise ValueError(f"{text.path or text.name} {what} {', '.join(tables)}: name the split with {KEY}.split")
    return tables[split], f"{text.path or text.name}, split {split}"


def _from_hub(text: OtherText) -> Any:
    instead = (
        f"{KEY}.name is {text.name!r}, and the Hub cannot be reached: give a local text with {KEY}.path=FILE, or read "
        "a copy in the cache with HF_HUB_OFFLINE=1"
    )
    if not constants.HF_HUB_OFFLINE:
        try:  # once: datasets would try for half a minute
            get_session().head(constants.ENDPOINT, timeout=10)
        except Exception as error:
            raise HubNotReached(instead) from error
    try:
        return read_tables(text.name, KEY, text.config)
    except ValueError as error:
        if isinstance(error.__cause__, ConnectionError):
            raise HubNotReached(instead) from error
        raise
