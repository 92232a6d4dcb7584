"""LearningRates: which networks of an experiment are trained at other learning rates than the recipe's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DEFAULT = 5e-5  # of TrainingArguments; here so that reports need not import it
USED = "learning_rate"  # in a line of results: what the network was trained at
OF_RECIPE = "recipe_learning_rate"  # in every line of an experiment with other rates: the recipe's own


@dataclass(frozen=True)
class LearningRates:
    """The learning rates of an experiment in which not every network has the recipe's own.

    Args:
        own: the recipe's, `training.learning_rate`.
        lists: control -> the rates that it is trained at. Others have the recipe's own alone.
        tune: whether the dense network, the tickets, and the controls without a list are trained at every rate that
            any control lists, and at the recipe's own.
    """

    own: float
    lists: Mapping[str, tuple[float, ...]]
    tune: bool = False

    def of(self, name: str) -> tuple[float | None, ...]:
        """The rates of a control, or of "ticket" (and the dense network); None stands for the recipe's own."""
        rates: Iterable[float] = self.lists.get(name) or ((self.own, *self._listed()) if self.tune else (self.own,))
        return tuple(dict.fromkeys(None if rate == self.own else float(rate) for rate in rates))

    def _listed(self) -> list[float]:
        return sorted({rate for rates in self.lists.values() for rate in rates})


def learning_rates(
    own: float, given: Mapping[str, float | list[float] | None], tune: bool = False
) -> LearningRates | None:
    """The learning rates of a recipe; None if every network has the recipe's own.

    Args:
        own: `training.learning_rate`.
        given: control -> its `learning_rate`: one, a list of them, or None.
        tune: whether `experiment.tune` is learning_rate.
    """
    lists = {
        name: tuple(rates) if isinstance(rates, (list, tuple)) else (rates,)
        for name, rates in given.items()
        if rates is not None
    }
    return LearningRates(own, lists, tune) if lists else None
