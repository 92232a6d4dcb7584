"""Reads a data set with `datasets`, from the Hub or a local folder. Error messages say what to do."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_splits(name: str, splits: list[str]) -> dict[str, Any]:
    """Split name -> datasets.Dataset.

    Args:
        name: Hub id, or a local folder of parquet, csv, json or image files.
        splits: names of the splits.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the data set is not found, or has no such split.
    """
    found = read_tables(name)
    missing = [split for split in splits if split not in found]
    if missing:
        raise ValueError(
            f"{name} has no split {missing[0]!r} but {', '.join(found)}: name the split with data.train_split or "
            "data.test_split"
        )
    return {split: found[split] for split in splits}


def read_tables(name: str, key: str = "data", config: str | None = None, file: str | None = None) -> Any:
    """Split name -> datasets.Dataset, for all splits of a data set.

    Args:
        name: Hub id, or a local folder; with `file`, the reader of datasets that reads it, such as csv.
        key: of the recipe's section that names it, for error messages.
        config: which configuration of the data set.
        file: a local file to read.

    Raises:
        ValueError: it is not found, or cannot be read. A ConnectionError that led to it is its cause.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.utils import logging

    path = name if file is None and Path(name).is_dir() else file
    # `json` is a reader of datasets: it would read whatever lies in the working directory, and `sql` what a query says
    if path is None and name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}") is not None:
        raise ValueError(f"{key}.name is {name!r}, which is a reader of files, not a data set: set {key}.path=FOLDER")
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # it would log a traceback of what is raised, too
    try:
        return load_dataset(name, config, data_files=file)
    except Exception as error:  # files of any kind are read, by as many readers, and each fails in its own way
        if path is not None:
            # a DatasetGenerationError's own message has no reason
            why = error.__cause__ or error if isinstance(error, DatasetGenerationError) else error
            what = "folder" if Path(path).is_dir() else "file"
            raise ValueError(f"no data set can be read from the {what} {path}: {why}") from error
        raise ValueError(
            f"{key}.name is {name!r}, which cannot be loaded from the Hub ({error}): check the name and the network, "
            f"or read local files with {key}.path=FOLDER"
        ) from error
    finally:
        logging.set_verbosity(level)


def require_column(table: Any, column: str, key: str, where: str) -> None:
    """Raise ValueError if the table has no such column. The message names its columns."""
    if column not in table.column_names:
        raise ValueError(
            f"{where} has no column {column!r} but {', '.join(table.column_names)}: name the column with {key}"
        )


def read_labels(table: Any, column: str, where: str) -> tuple[Tensor, int]:
    """The classes of a table's rows, int64 [N], and the number of classes: as declared, else the largest class + 1.

    Raises:
        ValueError: there is no such column, or its values are not whole numbers.
    """
    from datasets import ClassLabel

    require_column(table, column, "data.label_column", where)
    values = table[column][:]
    for row, value in enumerate(values):
        if not isinstance(value, int):
            raise ValueError(
                f"row {row} of {where} has {value!r} in the column {column!r}; classes must be whole numbers from 0: "
                "number them, or name another column with data.label_column"
            )
    labels, feature = torch.tensor(values, dtype=torch.int64), table.features[column]
    return labels, feature.num_classes if isinstance(feature, ClassLabel) else int(labels.max()) + 1


def require_folder(path: str) -> Path:
    """`path` as a Path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data.path is {path!r}, which is no folder: set data.path=FOLDER, or leave it out to read "
            "data.name from the Hub"
        )
    return folder
