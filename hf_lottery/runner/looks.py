"""`experiment.replicates: auto`: replicates are added until a winning ticket is shown or ruled out."""

from __future__ import annotations

from hf_lottery.distributed.processes import from_main
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.results.results import read_results
from hf_lottery.results.verdict import verdict


def grow(recipe: Recipe, experiment: Experiment) -> bool:
    """Plan the replicates up to the next look, if the claim is undecided after those that are planned now.

    The replicates that are planned must be finished. Only these are judged, though later ones may be there from a run
    that was stopped: the same looks have the same answers every time.

    Returns:
        Whether there are more now.
    """
    looks = recipe.experiment.looks()
    after = [count for count in looks if count > experiment.replicates]
    if not after or from_main(lambda: _decided(experiment)):
        return False
    experiment.grow(after[0])
    return True


def _decided(experiment: Experiment) -> bool:
    return verdict(read_results(experiment.root).of_first(experiment.replicates)).decided
