"""Small data sets held as tensors, and read in whole batches: a call for each example would cost more than LeNet."""

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

    A DataLoader calls `__getitems__` once for a whole batch, and gets a list with one item, the batch. Its collator is
    `take_batch`. `dataset[i]` gives a single example, as from any other data set.

    Args:
        tensors: argument name -> tensor [N, ...].
        transform: applied to every batch: (batch, indices int64 [n]) -> batch.
        num_labels: number of classes.
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
    """The collator for a TensorDataset, whose items are whole batches."""
    (batch,) = features
    return batch


def hold_out(total: int, count: int, seed: int, key: str = "data.validation_size") -> tuple[Tensor, Tensor]:
    """Split the indices 0 … total−1 at random into (the others, the `count` held out), both in ascending order.

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
    """`count` random indices of 0 … total−1, in ascending order. None: all of them.

    Raises:
        ValueError: there are fewer than `count`.
    """
    if count is None:
        return torch.arange(total)
    if count > total:
        raise ValueError(
            f"data.test_size is {count}, but there are {total} examples: set it to a smaller number, or leave it out"
        )
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def check_labels(labels: Tensor, num_labels: int, where: str) -> None:
    """Raise ValueError if a label of int64 [N] is not in 0 … num_labels − 1. The message names the first such row."""
    wrong = ((labels < 0) | (labels >= num_labels)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"row {row} of {where} has label {int(labels[row])}; labels must be 0 to {num_labels - 1}: remove such "
            "rows, or name another column with data.label_column"
        )


def argmax(logits: Any, labels: Tensor) -> Tensor:
    """The predicted classes int64 [n] of logits [n, classes], so that evaluation stores one number per example."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of examples whose predicted class (see `argmax`) is their label, from 0 to 1."""
    return {"accuracy": float(np.mean(prediction.predictions == prediction.label_ids))}
