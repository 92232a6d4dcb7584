"""Linear mode connectivity: the errors on the line between two networks, their barrier, and when it is stable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

POINTS = 30
STABLE_BELOW = 0.02

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class LinearPath:
    """Errors on the straight line (1 − α) θ_A + α θ_B, from θ_A to θ_B.

    Args:
        alphas: evenly spaced from 0 to 1, both ends among them.
        errors: the error at each α: a rate between 0 and 1, or a perplexity or loss.
        relative: the error is not a rate, so instability is the barrier divided by the ends' mean error.
    """

    alphas: list[float]
    errors: list[float]
    relative: bool = False

    @property
    def instability(self) -> float:
        """Greatest error on the line − mean error of its ends (Frankle et al. 2020, section 2); never below 0.

        Infinite where an error is not finite.
        """
        if not all(map(math.isfinite, self.errors)):
            return math.inf
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
    (Running statistics that are measured again at every α would give lower errors in between; they would also need
    training data, and the number would no longer be one of the two networks alone.) Whole-number buffers, such as
    batch norm's count of batches, are not interpolated: they are `a`'s.
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


def to_dict(found: Instability) -> dict[str, Any]:
    """As plain JSON values, with the instability of each pair, their mean, and whether it is stable.

    Null stands for an error that is not finite, and for what follows from it: JSON has no infinity.
    """
    paths = [{**asdict(path), "errors": [_finite(error) for error in path.errors]} for path in found.paths]
    pairs = [_finite(path.instability) for path in found.paths]
    more = {"paths": paths, "instability": _finite(found.mean), "instability_of_pairs": pairs}
    return asdict(found) | more | {"stable": found.stable}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def from_dict(values: Mapping[str, Any]) -> Instability:
    """The Instability that `to_dict` gave."""
    paths = [
        LinearPath(**{**path, "errors": [math.inf if error is None else error for error in path["errors"]]})
        for path in values["paths"]
    ]
    return Instability(values["rewind_step"], values["density"], values["seeds"], paths)


def earliest_stable_step(steps: Iterable[int], instability_at: Callable[[int], float]) -> int | None:
    """The first of the steps, in rising order, at which instability is below 2%, or None. Later steps are not tried.

    Args:
        steps: candidates for k.
        instability_at: k -> instability, for example the mean of `measure_instability`.
    """
    return next((step for step in sorted(steps) if instability_at(step) < STABLE_BELOW), None)
