"""Other text: read from files, folders and a Hub of this machine, and cut into the same blocks everywhere."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing

from hf_lottery.recipe.sections import ModelSection
from hf_lottery.tasks import causal_lm
from hf_lottery.tasks.other_text import HubNotReached, OtherText, read_blocks, require_text_is_there
from tests import tiny_lm

ROWS = ["one text", "another, which is longer", "", None, "a third one"]
JOINED = "one text<eos>another, which is longer<eos>a third one<eos>"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def _blocks(path, tokens=40, block_length=8, tokenizer=None, **options):
    text = OtherText(path=str(path), tokens=tokens, block_length=block_length, **options)
    return read_blocks(text, tokenizer or tiny_lm.tokenizer())


def _text(blocks) -> str:
    return tiny_lm.tokenizer().decode([token for block in blocks.ids for token in block])


def _jsonl(path, rows=ROWS, column="text"):
    path.write_text("".join(json.dumps({column: row, "n": 1}) + "\n" for row in rows))
    return path


def _folder(path, **tables):
    path.mkdir()
    for name, rows in tables.items():
        _jsonl(path / f"{name}.jsonl", rows)
    return path


def _all_kinds(folder):
    _jsonl(folder / "rows.jsonl")
    (folder / "rows.json").write_text(json.dumps([{"text": row} for row in ROWS]))
    Dataset.from_dict({"text": ROWS}).to_parquet(folder / "rows.parquet")
    Dataset.from_dict({"text": [row for row in ROWS if row]}).to_csv(folder / "rows.csv")
    _folder(folder / "tables", test=ROWS, train=["not this"])
    _folder(folder / "one", train=ROWS)
    (folder / "texts").mkdir()
    for name, row in zip("abcde", ROWS, strict=True):
        (folder / "texts" / f"{name}.txt").write_text(row or "")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.csv", "tables", "one", "texts"])
def test_every_kind_of_file_and_folder_gives_the_same_blocks(name, tmp_path):
    _all_kinds(tmp_path)
    blocks = _blocks(tmp_path / name)
    assert [len(block) for block in blocks.ids] == [8] * 5 and (blocks.tokens, blocks.block_length) == (40, 8)
    ids = tiny_lm.tokenizer()(JOINED).input_ids  # a byte is a token, <eos> is one
    assert [token for block in blocks.ids for token in block] == ids[:40]


def test_a_text_file_is_one_document_and_a_row_that_ends_in_a_newline_goes_on(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8-sig")
    assert _text(_blocks(tmp_path / "a.txt", 8)) == "one\n\ntwo"
    _jsonl(tmp_path / "lines.jsonl", ["", " = Title = \n", "", "a line\n", "and one\n"])
    assert _text(_blocks(tmp_path / "lines.jsonl", 24)) == " = Title = \na line\nand o"


def test_a_long_document_is_read_in_pieces_without_an_eos_between_them(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 200)
    assert _text(_blocks(tmp_path / "a.txt", 16)) == "abcdefgh" * 2
    (tmp_path / "b.txt").write_text(" " * 400 + "x" + " " * 400 + "end")
    eos = _text(_blocks(tmp_path / "b.txt", 800))
    assert "<eos>" not in eos


def test_what_is_left_over_is_not_used_and_tokens_are_whole_blocks(tmp_path):
    blocks = _blocks(_jsonl(tmp_path / "rows.jsonl"), tokens=30)
    assert (len(blocks.ids), blocks.tokens) == (3, 24)


def test_a_tokenizer_that_begins_with_bos_begins_every_block_with_it(tmp_path):
    tokenizer = tiny_lm.tokenizer(bos_token="<bos>", eos_token="<eos>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    blocks = _blocks(_jsonl(tmp_path / "rows.jsonl"), 16, tokenizer=tokenizer)
    assert [block[0] for block in blocks.ids] == [bos, bos]
    assert tokenizer.decode(blocks.ids[0][1:] + blocks.ids[1][1:]) == "one text<eos>anoth"


def test_the_fingerprint_is_of_the_tokens(tmp_path):
    path = _jsonl(tmp_path / "rows.jsonl")
    first, again = _blocks(path).fingerprint(), _blocks(path).fingerprint()
    assert first == again != _blocks(_jsonl(path, ["other"] * 20)).fingerprint()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens": 4096}, "has 46 tokens, and data.other_text.tokens asks for 4,096: set data.other_text.tokens=40"),
        ({"tokens": 4096, "block_length": 100}, "asks for 4,096: give more text"),
        ({"column": "txt"}, "has no column 'txt' but text, n: name the column with data.other_text.column"),
        ({"column": "n"}, "has 1 in the column 'n', which is no text: name the column"),
        ({"split": "validation"}, "has no split 'validation' but train: name the split with data.other_text.split"),
    ],
)
def test_a_table_without_what_is_asked_for(options, said, tmp_path):
    with pytest.raises(ValueError, match="rows.jsonl") as error:
        _blocks(_jsonl(tmp_path / "rows.jsonl"), **options)
    assert said in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for name, content, said in (
        ("bad.txt", b"\xff\xfe\xfa", "no text in UTF-8"),
        ("bad.jsonl", b"{{{", "no data set can be read from the file"),
        ("empty.txt", b" \n", "has 0 tokens, and"),
        ("book.pdf", b"%PDF", "no file that ends in '.pdf' is read: give one that ends in .txt"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said):
            _blocks(tmp_path / name)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no data set can be read from the folder"):
        _blocks(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="data.other_text=null"):
        require_text_is_there(OtherText(path=str(tmp_path / "gone")))
    folder = _folder(tmp_path / "several", train=ROWS, validation=ROWS)
    with pytest.raises(ValueError, match="has several splits, train, validation: name the split"):
        _blocks(folder)


def test_sections_that_cannot_be(tmp_path):
    for values, said in (
        ({}, "needs a name .* or a path"),
        ({"name": "a/b", "tokens": 100}, "is 100 and data.other_text.block_length is 512, so that there is not one"),
        ({"name": "a/b", "block_length": 1}, "greater than 1"),
    ):
        with pytest.raises(ValidationError, match=said):
            OtherText(**values)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"path": "{}/table"}, {"path": "{}/table"}),
        ({"path": "{}/table"}, {"path": "{}/../{name}/table/train.json"}),
        ({"name": "tatsu-lab/alpaca"}, {"name": "tatsu-lab/alpaca"}),
    ],
)
def test_the_tasks_own_data_are_no_other_text(task, text, tmp_path):
    task, text = (
        {key: value.format(tmp_path, name=tmp_path.name) for key, value in part.items()} for part in (task, text)
    )
    with pytest.raises(ValidationError, match="the task's own data: name text that the task does not hold"):
        causal_lm.Data(**task, other_text=text)
    causal_lm.Data(**task, other_text={"path": f"{tmp_path}/tables"})


def test_a_hub_that_cannot_be_reached_is_said_and_the_task_is_loaded_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    text = OtherText(name="Salesforce/wikitext", config="wikitext-2-raw-v1")
    with pytest.raises(HubNotReached, match="give a local text with data.other_text.path=FILE"):
        read_blocks(text, tiny_lm.tokenizer())
    section = ModelSection(name_or_path=str(tiny_lm.save_model(tmp_path / "model")))
    sizes = {"validation_size": 4, "test_size": 4, "max_length": 400}
    data = causal_lm.Data(path=str(tiny_lm.save_table(tmp_path / "table")), other_text=text, **sizes)
    loaded = causal_lm.load(data, section)
    assert loaded.other_text is None and len(loaded.train) == 32
    assert loaded.notes[-1].startswith("forgetting is not measured: data.other_text.name is 'Salesforce/wikitext'")
