"""Small data sets held as tensors and read a batch at a time: Python per example costs more than LeNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction


class TensorDataset(Dataset):
    """Tensors of equal length under the names of a model's arguments, gathered by index.

    A DataLoader asks `__getitems__` for a batch's indices at once and gets the batch ready-made, as a list of one; its
    collator is `take_batch`. Read one by one it is a dataset like any other.

    Args:
        tensors: argument name -> tensor [N, ...].
        transform: applied to every batch: (batch, indices int64 [n]) -> batch.
        num_labels: how many classes there are.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        transform: Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]] | None = None,
        num_labels: int | None = None,
    ):
        self.tensors = tensors
        self.transform = transform
        self.num_labels = num_labels

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        index = torch.as_tensor(indices)
        batch = {name: tensor[index] for name, tensor in self.tensors.items()}
        return [batch if self.transform is None else self.transform(batch, index)]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([index])[0].items()}


def take_batch(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The collator of a TensorDataset: its batches come ready-made."""
    (batch,) = features
    return batch


def hold_out(total: int, count: int, seed: int, key: str = "data.validation_size") -> tuple[Tensor, Tensor]:
    """Split indices 0 … total−1 at random: (what is left, the `count` held out), both in ascending order.

    Raises:
        ValueError: `count` leaves nothing to train on.
    """
    if not 0 < count < total:
        raise ValueError(
            f"{key} is {count}, of {total} examples; it must be between 1 and {total - 1}: "
            f"set {key} to a smaller number"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def subset(total: int, count: int | None, seed: int) -> Tensor:
    """Indices of `count` of `total` examples, at random; None is all of them.

    Raises:
        ValueError: there are fewer.
    """
    if count is None:
        return torch.arange(total)
    if count > total:
        raise ValueError(f"data.test_size is {count}, but there are {total} examples: set it lower, or leave it out")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def check_labels(labels: Tensor, num_labels: int, where: str) -> None:
    """Raise ValueError, naming the first one, if labels int64 [N] are not all in 0 … num_labels − 1."""
    wrong = ((labels < 0) | (labels >= num_labels)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"row {row} of {where} has label {int(labels[row])}; labels must be 0 to {num_labels - 1}: remove such "
            "rows, or name another column with data.label_column"
        )


def argmax(logits: Any, labels: Tensor) -> Tensor:
    """The predicted classes, so that evaluation keeps one number an example: int64 [n] of logits [n, classes]."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of examples whose predicted class (see `argmax`) is their label, from 0 to 1."""
    return {"accuracy": float(np.mean(prediction.predictions == prediction.label_ids))}
