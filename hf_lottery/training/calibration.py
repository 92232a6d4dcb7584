"""Calibration batches: the training examples that criteria look at, the same ones for any number of processes."""

from __future__ import annotations

from itertools import islice
from typing import Any

from accelerate.data_loader import DataLoaderStateMixin
from accelerate.utils import concatenate, find_batch_size, send_to_device, slice_tensors
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Trainer

from hf_lottery.distributed.processes import gathered, world_size
from hf_lottery.pruning.context import NoCalibration


def calibration_batches(trainer: Trainer, count: int, criterion: str) -> list[Any]:
    """The first `count` batches of the training data, as this process gets them in training.

    With several processes an example that accelerate repeats to fill the last batch is left out. A network with batch
    norm gets the batches of all processes, joined, so that it normalises over the same examples as one process would.

    Args:
        trainer: its training data are read from their beginning.
        count: how many batches.
        criterion: its name, for messages.

    Returns:
        The batches, on the trainer's device.

    Raises:
        NoCalibration: on all processes, if there is no training data, too little for all processes, or batches of a
            network with batch norm cannot be joined.
    """
    if trainer.train_dataset is None:
        raise NoCalibration(
            f"criterion {criterion} looks at data, and the trainer has no train_dataset: give it one, or use "
            "criterion magnitude"
        )
    loader = trainer.get_train_dataloader()
    several = world_size() > 1
    drawn = _of_several_processes(loader, count, trainer, criterion) if several else list(islice(loader, count))
    return [trainer._prepare_inputs(batch) for batch in drawn]


def _of_several_processes(loader: Any, count: int, trainer: Trainer, criterion: str) -> list[Any]:
    drawn = []
    for batch in islice(loader, count):
        rows = find_batch_size(batch)
        own = _own_rows(rows, loader, trainer)
        if own:
            drawn.append(batch if own == rows else slice_tensors(batch, slice(own)))
    if not all(gathered(len(drawn))):
        raise NoCalibration(
            f"criterion {criterion} looks at data, and there are too few examples for {world_size()} processes: "
            "launch fewer, or lower per_device_train_batch_size"
        )
    return _joined(drawn, criterion) if _has_batch_norm(trainer.model) else drawn


def _own_rows(rows: int, loader: Any, trainer: Trainer) -> int:
    """How many of a batch's first examples are not there to fill the last batch of several processes."""
    fills = trainer.accelerator.even_batches and isinstance(loader, DataLoaderStateMixin) and loader.end_of_dataloader
    if not fills or loader.remainder <= 0:  # or the data divide into full batches
        return rows
    return min(max(loader.remainder - trainer.args.process_index * rows, 0), rows)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _joined(batches: list[Any], criterion: str) -> list[Any]:
    """The batches of all processes, those of one step joined in order of ranks."""
    of_ranks = gathered(send_to_device(batches, "cpu"))
    steps = max(len(of_rank) for of_rank in of_ranks)
    try:
        return [concatenate([of_rank[step] for of_rank in of_ranks if step < len(of_rank)]) for step in range(steps)]
    except (RuntimeError, TypeError):
        raise NoCalibration(
            f"criterion {criterion} joins the batches of {world_size()} processes for a network with batch norm, and "
            "theirs have different shapes: use one process, or another criterion"
        ) from None
