"""Small data sets on disk in the shapes of CIFAR-10 and IMDb, for tests."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image

GOOD, BAD = ["a splendid film", "splendid, simply splendid acting"], ["a dreadful film", "dreadful acting, and long"]


def model_section(**kwargs):
    """A recipe's `model` section with what is given, and what a recipe has by default elsewhere."""
    empty = dict.fromkeys(("name_or_path", "revision", "dtype", "gguf_file", "architecture", "device_map"))
    return SimpleNamespace(**{**empty, "config": {}, **kwargs})


def write_images(folder, count=30, channels=3, sizes=(8,), labels=range(5), num_classes=None):
    """<split>.parquet with encoded images of random pixels in `img` and classes in `label`, as CIFAR-10 has them."""
    draw = np.random.default_rng(0)
    images = []
    for i in range(count):
        side = sizes[i % len(sizes)]
        pixels = draw.integers(0, 256, (side, side, channels), dtype=np.uint8)
        images.append(PIL.Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels))
    return write_table(folder, {"img": images, "label": [labels[i % len(labels)] for i in range(count)]}, num_classes)


def write_texts(folder, count=40, **columns):
    """<split>.parquet with reviews in `text` and classes in `label`, sorted by class as IMDb is; `columns` replace."""
    half = count // 2
    texts = [f"{BAD[i % 2]} {i}" for i in range(half)] + [f"{GOOD[i % 2]} {i}" for i in range(half)]
    return write_table(folder, {"text": texts, "label": [0] * half + [1] * half, **columns})


def write_table(folder, columns, num_classes=None):
    """The same table as train.parquet and test.parquet; with `num_classes` the classes are declared, unchecked."""
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict({name: values for name, values in columns.items() if values is not None})
    if num_classes is not None:
        features = table.features.copy()
        features["label"] = datasets.ClassLabel(num_classes=num_classes)
        table.info.features = features
        table._data = table._data.replace_schema_metadata(features.arrow_schema.metadata)
    for split in ("train", "test"):
        table.to_parquet(folder / f"{split}.parquet")
    return folder
