"""Prune LeNet-300-100 before training by each criterion, train what is left, and compare with pruning after training.

    python benchmarks/criteria.py --path ../shared/data/mnist --output-dir outputs/criteria

An experiment with more controls: every criterion prunes θ_0 to the density of the last round in one pruning, over the
whole network, and the survivors are trained from θ_0. They are compared with the dense network, and with magnitude
after training in one pruning (`one_shot`) and in six rounds (`ticket`), both rewound to θ_0. The output folder is like
that of any run; a run that was stopped can be continued. `benchmarks/write_results.py` makes the table.

Source: Tanaka et al. 2020 (arXiv 2006.05467) and Frankle et al. 2021 (arXiv 2009.08576) compare criteria in this way.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hf_lottery.experiment.controls import CONTROLS
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.files import write_text
from hf_lottery.layout import COMMAND_FILE, RESULTS_FILE
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.recipe.sections import Control
from hf_lottery.runner.build import make_experiment
from hf_lottery.runner.progress import NetworkProgress, StepCallback
from hf_lottery.runner.run import claim_output_folder
from hf_lottery.training.search import Search
from hf_lottery.training.trainer import LotteryMixin

AT_INITIALISATION = ("random", "magnitude", "snip", "grasp", "synflow", "wanda")
ROUNDS = 6  # of magnitude after training, to the density that the others reach in one pruning


def at_initialisation(criterion: str):
    """A control: θ_0 under a mask that `criterion` computes from θ_0; it keeps as many weights as the ticket."""

    def control(trainer: LotteryMixin, number: int, seed: int) -> None:
        ticket = Search(trainer).round_folder(number).mask()
        rate = 1 - ticket.count() / ticket.numel()
        trainer.lottery_config = replace(trainer.lottery_config, criterion=criterion, pruning_rate=rate)
        trainer.prune()
        trainer.rewind()

    return control


def make(arguments: argparse.Namespace, progress: NetworkProgress) -> Experiment:
    """The experiment, in a folder that is claimed for it; refused if the folder holds results of other settings."""
    overrides = [
        f"training.max_steps={arguments.steps}",
        f"training.output_dir={arguments.output_dir}",
        "lottery.scope=global",
        "lottery.pruning_rates={}",
        f"lottery.num_rounds={ROUNDS}",
        f"lottery.pruning_rate={1 - arguments.density ** (1 / ROUNDS):.6f}",
        f"experiment.replicates={arguments.replicates}",
        f"experiment.controls={{one_shot: {{rounds: [{ROUNDS}]}}}}",
    ]
    if arguments.path is not None:
        overrides.append(f"data.path={arguments.path}")
    recipe = load_recipe("mnist/lenet-300-100", overrides)
    root = claim_output_folder(recipe)
    write_text(root / COMMAND_FILE, shlex.join(["python", *sys.argv]) + "\n")
    CONTROLS.update({criterion: at_initialisation(criterion) for criterion in AT_INITIALISATION})
    more = [Control.model_construct(name=name, rounds=[ROUNDS], per_ticket=1) for name in AT_INITIALISATION]
    plan = recipe.experiment.model_copy(update={"controls": [*recipe.experiment.controls, *more]})
    return make_experiment(recipe.model_copy(update={"experiment": plan}), root, [StepCallback(progress)])


def main() -> None:
    """Parse the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", help="folder with MNIST's idx files; unset, MNIST from the Hub")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/criteria"))
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=2000, help="of training, a network")
    parser.add_argument("--replicates", type=int, default=3)
    progress = NetworkProgress(Console())
    experiment = make(parser.parse_args(), progress)
    with progress.over(experiment):
        experiment.run(on_start=progress.start)
    print(experiment.root / RESULTS_FILE)


if __name__ == "__main__":
    main()
