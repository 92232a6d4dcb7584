"""Instability: does SGD noise after step k matter? Linear mode connectivity of two networks trained from one θ_k."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from hf_lottery.files import write_text
from hf_lottery.mask import Mask
from hf_lottery.random_state import get_rng_state
from hf_lottery.results.linear_path import POINTS, Instability, linear_path, to_dict
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.rewinding import RewindCallback
from hf_lottery.training.trainer import LotteryMixin

RESULT_FILE = "instability.json"


def measure_instability(
    trainer: LotteryMixin,
    folder: str | os.PathLike,
    mask: Mask | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    points: int = POINTS,
    metric: str = "accuracy",
    greater_is_better: bool = True,
) -> Instability:
    """Train copies from θ_k under several data orders and measure the error between each pair.

    θ_k, with optimizer and scheduler at step k, is read from the trainer's output folder, or reached by training the
    dense network for k steps first. A copy differs from another in its data order, its augmentation and its dropout,
    and in nothing else. Finished copies are kept in `folder` and never trained again.

    Args:
        trainer: a LotteryTrainer whose `lottery_config.rewind_step` is k. Errors are measured on
            `eval_dataset["test"]`, or on `eval_dataset` where that is not a dict.
        folder: where the copies and instability.json are written; one for every replicate, mask and k.
        mask: trained under this mask; None: the dense network.
        seeds: one for each copy, at least two.
        points: α's on a line.
        metric: of compute_metrics; the error is 1 − metric.
        greater_is_better: False: the metric is the error itself, and instability a share of the ends' mean.

    Raises:
        ValueError: fewer than two seeds, k is not before the end of training, or `folder` holds another mask's copies.

    Source: Frankle et al. 2020 (arXiv 1912.05671), sections 2 and 3: 30 points, 3 data orders for each of 3
    initialisations, stable below 2%.
    """
    if len(set(seeds)) < 2:
        raise ValueError(f"seeds is {list(seeds)}; instability needs two data orders at least, such as [1, 2, 3]")
    trainer.lottery_config.retraining = "weight_rewinding"
    reach_rewind_point(trainer)
    mask = mask or Mask.ones(trainer.mask)
    folder = Path(folder)
    trained = [_train_copy(trainer, NetworkFolder(folder / f"order-{seed}"), mask, seed) for seed in seeds]

    def evaluate(state: dict[str, Tensor]) -> float:
        RewindPoint(0, state).restore(trainer.model)
        data = trainer.eval_dataset["test"] if isinstance(trainer.eval_dataset, dict) else trainer.eval_dataset
        value = trainer.predict(data, metric_key_prefix="test").metrics[f"test_{metric}"]
        return 1 - value if greater_is_better else value

    paths = [
        linear_path(a.tensors, b.tensors, evaluate, points, relative=not greater_is_better)
        for a, b in combinations(trained, 2)
    ]
    found = Instability(trainer.rewind_point.step, mask.density(), list(seeds), paths)
    write_text(folder / RESULT_FILE, json.dumps(to_dict(found), indent=1) + "\n")
    return found


def reach_rewind_point(trainer: LotteryMixin) -> None:
    """Load θ_k from the trainer's output folder, or train up to step k (and one step more) to capture it there."""
    try:
        trainer.load_rewind_point()
    except FileNotFoundError:
        stop = _StopAfterCapture(_rewind_callback(trainer))
        trainer.add_callback(stop)
        trainer.train()
        trainer.remove_callback(stop)


class _StopAfterCapture(TrainerCallback):
    """Ends training once step k has been captured, which is at the start of step k + 1."""

    def __init__(self, rewinding: RewindCallback):
        self.rewinding = rewinding

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        control.should_training_stop = self.rewinding.rng is not None


def _rewind_callback(trainer: LotteryMixin) -> RewindCallback:
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, RewindCallback))


def _train_copy(trainer: LotteryMixin, unit: NetworkFolder, mask: Mask, seed: int) -> RewindPoint:
    if not unit.finished:
        trainer.rewind_point.restore(trainer.model)
        trainer.mask = mask
        trainer.restart()
        with _noise(trainer, seed):
            trainer.train_network(unit, control="instability", round=1, sample=seed)
    if unit.result()["fingerprint"] != mask.fingerprint():
        raise ValueError(
            f"'{unit.path}' holds a network of another mask: give each round and step a folder of its own"
        )
    return unit.trained()


@contextmanager
def _noise(trainer: LotteryMixin, seed: int) -> Iterator[None]:
    """Within it, the trainer replays from step k under the random numbers of `seed`, instead of those it had."""
    rewinding = _rewind_callback(trainer)
    dataloaders = trainer.accelerator.dataloader_config
    before, data_seed = (rewinding.start_rng, rewinding.rng), dataloaders.data_seed
    set_seed(seed)
    rewinding.start_rng = rewinding.rng = get_rng_state()
    if data_seed is not None:  # else it would fix the data order
        dataloaders.data_seed = seed
    try:
        yield
    finally:
        rewinding.start_rng, rewinding.rng = before
        dataloaders.data_seed = data_seed
