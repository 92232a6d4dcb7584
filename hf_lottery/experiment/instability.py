"""Instability: how much the data order after step k changes the network. Linear paths between copies from one θ_k."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.processes import from_main
from hf_lottery.layout import INSTABILITY_FILE
from hf_lottery.mask import Mask
from hf_lottery.results.diverged import Diverged, DivergedError
from hf_lottery.results.linear_path import POINTS, Instability, linear_path, to_dict
from hf_lottery.sealed import DamagedFile, write_sealed
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.discard import discard
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.search import Search
from hf_lottery.training.trainer import LotteryMixin


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

    θ_k, with the scheduler of step k, and the optimizer as `rewind_optimizer` says, is read from the trainer's output
    folder; if it is not there, the dense network is trained for k steps first. Copies differ in data order,
    augmentation and dropout, and in nothing else. Finished copies are kept in `folder` and never trained again.
    `trainer.lottery_config` does not change, and copies start from θ_k with any `retraining`.

    Args:
        trainer: a LotteryTrainer whose `lottery_config.rewind_step` is k. Errors are measured on
            `eval_dataset["test"]`, or on `eval_dataset` where that is not a dict.
        folder: where the copies and instability.json are written; a different one for each replicate, mask and k.
        mask: trained under this mask; None: the dense network.
        seeds: one for each copy, at least two.
        points: how many values of α on a line, 2 or more.
        metric: of compute_metrics; the error is 1 − metric.
        greater_is_better: False: the metric is the error itself, and instability is divided by the ends' mean.

    Raises:
        DivergedError: a copy, or the dense network before step k, became nan or infinite: no line has an error there.
        ValueError: fewer than two seeds, k is not before the end of training, or `folder` holds another mask's copies.

    Source: Frankle et al. 2020 (arXiv 1912.05671), sections 2 and 3: 30 points, 3 data orders for each of 3
    initialisations, stable below 2%.
    """
    if len(set(seeds)) < 2:
        raise ValueError(f"seeds is {list(seeds)}; instability needs two data orders at least, such as [1, 2, 3]")
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
    write_sealed(folder / INSTABILITY_FILE, to_dict(found))
    return found


def reach_rewind_point(trainer: LotteryMixin) -> None:
    """Load θ_k from the trainer's output folder, or train up to step k (and one step more) to capture it there.

    Raises:
        DivergedError: the dense network diverged before.
    """
    try:
        trainer.load_rewind_point()
        return
    except FileNotFoundError:
        stop = _StopAfterRewindStep(trainer.lottery_config)
    trainer.add_callback(stop)
    with trainer.watch.stopping():
        trainer.train()
    trainer.remove_callback(stop)
    if trainer.watch.diverged is not None:
        raise DivergedError(
            f"the dense network diverged at {trainer.watch.diverged.where}, before there were copies to compare: "
            "choose an earlier rewind_step, or a lower learning_rate"
        )


class _StopAfterRewindStep(TrainerCallback):
    """Ends training after step k + 1; θ_k was captured before that step, so no checkpoint of it is needed."""

    def __init__(self, config: LotteryConfig):
        self.config = config

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step > self.config.resolve_rewind_step(state.max_steps):
            control.should_training_stop = True
            control.should_save = False

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if control.should_training_stop:
            control.should_save = False


def _train_copy(trainer: LotteryMixin, folder: NetworkFolder, mask: Mask, seed: int) -> RewindPoint:
    """Train one copy from θ_k under `mask`, with the random numbers of `seed`; returns its trained weights."""
    try:
        return _trained_copy(trainer, folder, mask, seed)
    except DamagedFile as damage:
        if not damage.path.is_relative_to(folder.path):
            raise  # of the run, which is not changed here
        found = damage
    from_main(lambda: discard(found, folder.path))
    return _trained_copy(trainer, folder, mask, seed)


def _trained_copy(trainer: LotteryMixin, folder: NetworkFolder, mask: Mask, seed: int) -> RewindPoint:
    if not folder.finished:
        trainer.rewind_point.restore(trainer.model)
        trainer.mask = mask
        trainer.restart(retraining="weight_rewinding", seed=seed)
        trainer.other_text = None  # what a copy forgets is not asked
        Search(trainer).train_network(folder, control="instability", round=1, sample=seed)
    line = folder.result()
    if line["fingerprint"] != mask.fingerprint():
        raise ValueError(
            f"'{folder.path}' holds a network of another mask: give each round and step a folder of its own"
        )
    found = Diverged.of_line(line)
    if found is not None:
        raise DivergedError(
            f"the copy under data order {seed} diverged at {found.where}, so the error between copies has no bound"
        )
    return folder.trained()
