"""Rows of an instruction data set (instruction, input, output), read and split. No tokenizer is needed."""

from __future__ import annotations

from typing import Any

from hf_lottery.tasks.hub import load_splits, require_folder
from hf_lottery.tasks.tensors import hold_out

Row = tuple[str, str, str]  # instruction, input, output


def load_rows(data: Any) -> dict[str, list[Row]]:
    """Read the rows of `train`, `validation` and `test`.

    Args:
        data: the section `data` of the task causal_lm.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the data set is not found, lacks a column, or is too small to be split.
    """
    source = str(require_folder(data.path)) if data.path is not None else data.name
    tables = load_splits(source, [data.train_split] + ([data.test_split] if data.test_split else []))
    rows = {split: _rows(table, f"{source}, split {split}", data) for split, table in tables.items()}
    train = rows[data.train_split]
    if data.test_split:
        test = rows[data.test_split]
    else:
        left, chosen = hold_out(len(train), data.test_size, data.split_seed, "data.test_size")
        train, test = [train[i] for i in left], [train[i] for i in chosen]
    left, chosen = hold_out(len(train), data.validation_size, data.split_seed)
    return {"train": [train[i] for i in left], "validation": [train[i] for i in chosen], "test": test}


def _rows(table: Any, where: str, data: Any) -> list[Row]:
    columns = {
        "instruction_column": data.instruction_column,
        "input_column": data.input_column,
        "output_column": data.output_column,
    }
    for key, column in columns.items():
        if column is not None and column not in table.column_names:
            none = ", or set it to null if there is none" if key == "input_column" else ""
            raise ValueError(
                f"{where} has the columns {', '.join(table.column_names)}, and data.{key} is '{column}': name the "
                f"right one with data.{key}{none}"
            )
    texts = [[""] * len(table) if column is None else table[column][:] for column in columns.values()]
    return [tuple("" if text is None else str(text) for text in row) for row in zip(*texts, strict=True)]
