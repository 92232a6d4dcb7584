"""The learning rates of a recipe: `learning_rate` of a control and `experiment.tune`, and what they do not go with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_lottery.config import LotteryConfig
from hf_lottery.learning_rates import DEFAULT, LearningRates, learning_rates
from hf_lottery.recipe.sections import Experiment
from hf_lottery.recipe.yaml import Keys

_LR_END = 1e-7  # the polynomial schedule's, where lr_scheduler_kwargs has none


def rates_of(experiment: Experiment, training: dict[str, Any]) -> LearningRates | None:
    """The learning rates of an experiment whose section `training` is this; None: the recipe's own alone."""
    own = training.get("learning_rate", DEFAULT)
    given = {control.name: control.learning_rate for control in experiment.controls}
    return learning_rates(own, given, experiment.tune is not None)


def unfit_rates(
    experiment: Experiment, lottery: LotteryConfig, training: dict[str, Any]
) -> Iterator[tuple[Keys, str]]:
    """(path, sentence) for what makes other learning rates than the recipe's own impossible."""
    rates = rates_of(experiment, training)
    if rates is None:
        if experiment.tune is not None:
            yield (
                ("experiment", "tune"),
                "experiment.tune is learning_rate, and no control lists learning rates: add them, as in "
                "experiment.controls={random_mask: {learning_rate: [0.001, 0.003, 0.01]}}, or leave tune out",
            )
        return
    name = next(iter(rates.lists))
    path = ("experiment", "controls", name, "learning_rate")
    if lottery.rewind_step != 0:
        yield (
            path,
            f"{'.'.join(path)} is for lottery.rewind_step 0, and rewind_step is {lottery.rewind_step}: step k was "
            "reached at the recipe's own learning rate; set lottery.rewind_step=0, or leave other learning rates out",
        )
    yield from _below_the_end(rates, training)


def _below_the_end(rates: LearningRates, training: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
    """A polynomial schedule goes down to a rate that is given, and must start above it."""
    if training.get("lr_scheduler_type") != "polynomial":
        return
    end = (training.get("lr_scheduler_kwargs") or {}).get("lr_end", _LR_END)
    for name, listed in rates.lists.items():
        if (least := min(listed)) <= end:
            path = ("experiment", "controls", name, "learning_rate")
            yield (
                path,
                f"{'.'.join(path)} has {least}, and training.lr_scheduler_type polynomial ends at {end}: take rates "
                "above it, or a lower lr_end in training.lr_scheduler_kwargs",
            )
