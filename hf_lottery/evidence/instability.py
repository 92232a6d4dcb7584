"""Instability: does SGD noise after step k matter? Linear mode connectivity of two networks trained from one θ_k."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from hf_lottery.callbacks import RewindCallback, get_rng_state
from hf_lottery.mask import Mask
from hf_lottery.rewind import RewindPoint
from hf_lottery.rounds import UnitFolder, write_text
from hf_lottery.trainer import LotteryMixin

POINTS = 30
STABLE_BELOW = 0.02
RESULT_FILE = "instability.json"

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class LinearPath:
    """Errors on the straight line (1 − α) θ_A + α θ_B, from θ_A to θ_B.

    Args:
        alphas: evenly spaced from 0 to 1, both ends among them.
        errors: the error at each α: a rate between 0 and 1, or a perplexity or loss.
        relative: the error is no rate, so that instability is counted as a share of the ends' mean error.
    """

    alphas: list[float]
    errors: list[float]
    relative: bool = False

    @property
    def instability(self) -> float:
        """Greatest error on the line − mean error of its ends (Frankle et al. 2020, section 2); never below 0."""
        ends = (self.errors[0] + self.errors[-1]) / 2
        barrier = max(self.errors) - ends
        return barrier / ends if self.relative else barrier

    @property
    def stable(self) -> bool:
        return self.instability < STABLE_BELOW


@dataclass(frozen=True)
class Instability:
    """Instability of one network at one step k: the paths between all pairs of its trained copies.

    Args:
        rewind_step: k.
        density: of the mask under which the copies were trained.
        seeds: of the copies' data orders.
        paths: one for every pair of seeds.
    """

    rewind_step: int
    density: float
    seeds: list[int]
    paths: list[LinearPath]

    @property
    def mean(self) -> float:
        """Mean instability over the pairs."""
        return sum(path.instability for path in self.paths) / len(self.paths)

    @property
    def stable(self) -> bool:
        """Mean instability below 2% (Frankle et al. 2020)."""
        return self.mean < STABLE_BELOW


def linear_path(
    a: State, b: State, evaluate: Callable[[dict[str, Tensor]], float], points: int = POINTS, relative: bool = False
) -> LinearPath:
    """Evaluate the error on the straight line between two trained networks.

    Args:
        a, b: name -> tensor, the same names and shapes in both.
        evaluate: a state -> its error.
        points: how many evenly spaced α, 0 and 1 among them; 30 in the paper.
        relative: see `LinearPath`.

    Raises:
        ValueError: the states differ in names or shapes, or there are fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"points is {points}; the line has two ends, so it must be 2 or more")
    alphas = [float(alpha) for alpha in numpy.linspace(0, 1, points)]
    return LinearPath(alphas, [evaluate(interpolate(a, b, alpha)) for alpha in alphas], relative)


def interpolate(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """(1 − α) a + α b, tensor by tensor; exactly `a` at 0 and exactly `b` at 1.

    Floating-point buffers, batch norm's running means and variances among them, are interpolated as weights are.
    (Running statistics that are measured anew at every α would give lower errors in between; they would also need
    training data, and the number would no longer be one of the two networks alone.) Whole-number buffers, such as
    batch norm's count of batches, have no in-between: they are `a`'s.
    """
    if a.keys() != b.keys():
        raise ValueError(f"the two networks differ: only one of them has '{sorted(a.keys() ^ b.keys())[0]}'")
    state = {}
    for name, start in a.items():
        end = b[name]
        if start.shape != end.shape:
            raise ValueError(
                f"'{name}' has shape {tuple(start.shape)} in one network, {tuple(end.shape)} in the other"
            )
        state[name] = torch.lerp(start, end, alpha) if start.is_floating_point() else start
    return state


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
    trained = [_train_copy(trainer, UnitFolder(folder / f"order-{seed}"), mask, seed) for seed in seeds]

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


def to_dict(found: Instability) -> dict[str, Any]:
    """As plain JSON values, with what was concluded."""
    pairs = [path.instability for path in found.paths]
    return asdict(found) | {"instability": found.mean, "instability_of_pairs": pairs, "stable": found.stable}


def earliest_stable_step(steps: Iterable[int], instability_at: Callable[[int], float]) -> int | None:
    """The first of the steps (tried in rising order) at which instability is below 2%, or None; the rest is not run.

    Args:
        steps: candidates for k.
        instability_at: k -> instability, for example the mean of `measure_instability`.
    """
    return next((step for step in sorted(steps) if instability_at(step) < STABLE_BELOW), None)


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


def _train_copy(trainer: LotteryMixin, unit: UnitFolder, mask: Mask, seed: int) -> RewindPoint:
    if not unit.finished:
        trainer.rewind_point.restore(trainer.model)
        trainer.mask = mask
        trainer.restart()
        with _noise(trainer, seed):
            trainer.train_unit(unit, control="instability", round=1, sample=seed)
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
