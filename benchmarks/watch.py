"""What the watch over each training costs: LeNet-300-100 under a mask, with and without it, in turns.

    python benchmarks/watch.py --steps 600 --logging-steps 100 --turns 8

Each turn trains the quickstart's network of round 1 twice, once with the watch and once without, the first of the two
changing with every turn, on one thread, in seconds of the processor. Printed are the milliseconds of a step (the least
over the turns, which other work on the machine disturbs least), the ratio of each turn with its median, and whether
the trained weights are equal bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.build import build_trainer, load_data
from hf_lottery.tasks import TaskData
from hf_lottery.training.watch import Watch


def train(recipe, data: TaskData, watched: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Processor seconds of the training of round 1, and its trained weights."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(recipe, data, 42, Path(folder))
        trainer.args.max_steps, steps = 1, trainer.args.max_steps
        trainer.train()
        trainer.prune()
        trainer.rewind()
        trainer.args.max_steps = steps
        if not watched:
            trainer.remove_callback(Watch)
            trainer.watch = None
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
        return seconds, {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def main() -> None:
    """Parse the command line, train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--logging-steps", type=int, default=100, help="the watch looks wherever Trainer logs")
    parser.add_argument("--turns", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "max_steps": arguments.steps, "logging_steps": arguments.logging_steps, "eval_strategy": "'no'",
        "output_dir": "unused", "use_cpu": "true",
    }  # fmt: skip
    recipe = load_recipe("quickstart", [f"training.{name}={value}" for name, value in settings.items()])
    data = load_data(recipe)
    least, ratios, same = {True: float("inf"), False: float("inf")}, [], True
    for turn in range(arguments.turns):
        order = (True, False) if turn % 2 else (False, True)
        found = {watched: train(recipe, data, watched) for watched in order}
        ratios.append(found[True][0] / found[False][0])
        least = {watched: min(least[watched], found[watched][0]) for watched in least}
        same &= all(torch.equal(found[True][1][name], found[False][1][name]) for name in found[True][1])
    for watched, seconds in least.items():
        print(f"{'with' if watched else 'without':<8} {1000 * seconds / arguments.steps:.3f} ms a step")
    print(f"ratio    median {statistics.median(ratios):.3f}, turns {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(f"weights  {'equal bit for bit' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
