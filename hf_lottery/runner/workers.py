"""Several workers on one output folder: side by side on this machine, or as jobs of a Slurm cluster.

A worker does what `hf-lottery run` does, but prints nothing and writes no report and no ticket. File locks keep two
workers from training the same network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import JOBS_FOLDER
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.conclude import conclude
from hf_lottery.runner.looks import grow
from hf_lottery.runner.run import claim_output_folder, open_run
from hf_lottery.stopped import Stopped
from hf_lottery.training.stopping import Stopping

WORKER_FLAG = "--as-worker"


def run_side_by_side(recipe: Recipe, arguments: Sequence[str], count: int, console: Console | None = None) -> Path:
    """Run a recipe with `count` workers on this machine, which share its cores; then write report and ticket.

    Args:
        recipe: the recipe.
        arguments: the recipe's name and overrides, as in the command line.
        count: how many workers.
        console: where to print.

    Raises:
        ValueError: `count` is below 1.
        ChildProcessError: a worker failed; the others were stopped. What was finished stays.
        Stopped: SIGTERM or Ctrl-C has come; the workers were stopped, each with a checkpoint.
    """
    if count < 1:
        raise ValueError(f"--workers is {count}; it must be 1 or more")
    console = console or Console()
    recipe, experiment = open_run(recipe)
    _skip_finished(recipe, experiment)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    stopping = Stopping()
    with stopping.on_signals():
        workers = _start(_worker_command(arguments), min(count, len(experiment.pending())), environment)
        try:
            _watch(workers, recipe, experiment, stopping, console)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait()
    experiment.write_results()
    conclude(recipe, experiment, console)
    return experiment.root


def work(recipe: Recipe) -> None:
    """Be a worker: train until nothing is left, and print nothing but errors."""
    stopping = Stopping(passed_on=True)
    with stopping.on_signals():
        recipe, experiment = open_run(recipe, stopping=stopping)
        try:
            experiment.run(stopping=stopping)
            while grow(recipe, experiment):
                experiment.run(stopping=stopping)
        except Stopped as stopped:
            sys.exit(128 + stopped.number)  # who started the workers says what happened


def submit(recipe: Recipe, arguments: Sequence[str], count: int, cluster: str, console: Console | None = None) -> None:
    """Queue `count` workers as jobs on a cluster, through submitit; with cluster "local", as processes here.

    Raises:
        ValueError: submitit is not installed, or there is no such cluster.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--submit needs the package submitit: pip install 'hf_lottery[slurm]'") from error
    if cluster not in ("slurm", "local"):
        raise ValueError(f"--submit is '{cluster}'; it must be slurm or local")
    if count < 1:
        raise ValueError(f"--workers is {count}; it must be 1 or more")
    console = console or Console()
    root = claim_output_folder(recipe)
    logs = root / JOBS_FOLDER
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
    executor.update_parameters(name="hf-lottery", timeout_min=60 * 24)
    command = submitit.helpers.CommandFunction(_worker_command(arguments), verbose=False)
    jobs = [executor.submit(command) for _ in range(count)]
    console.print(
        f"{len(jobs)} workers queued ({', '.join(job.job_id for job in jobs)}), logs in {logs}.\n"
        f"`hf-lottery report {root}` shows what is finished; run again without --submit to write report and ticket.",
        highlight=False,
    )
    if cluster == "local":
        for job in jobs:
            job.result()


def _worker_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "hf_lottery", "run", *arguments, WORKER_FLAG]


def _start(command: Sequence[str], count: int, environment: Mapping[str, str]) -> list[subprocess.Popen]:
    """Start workers that ignore Ctrl-C: the terminal sends it to them too, and this process passes it on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return [subprocess.Popen(command, env=environment) for _ in range(count)]
    finally:
        signal.signal(signal.SIGINT, before)


def _skip_finished(recipe: Recipe, experiment: Experiment) -> None:
    """With `replicates: auto`, plan as many replicates as the finished ones call for."""
    while not experiment.pending() and grow(recipe, experiment):
        pass


def _watch(
    workers: list[subprocess.Popen], recipe: Recipe, experiment: Experiment, stopping: Stopping, console: Console
) -> None:
    """Print how many networks are trained until all workers have ended; raise ChildProcessError when one fails."""
    shown = ""
    while True:
        running = any(worker.poll() is None for worker in workers)
        stopping.check()
        failed = next((worker for worker in workers if worker.poll()), None)
        if failed is not None:
            raise ChildProcessError(
                f"a worker stopped with exit status {failed.returncode} (its message is above); "
                "run the same command again to continue"
            )
        _skip_finished(recipe, experiment)  # the workers do the same
        total = len(experiment.networks()) - len(experiment.left_out())
        said = f"{total - len(experiment.pending())} of {total} networks trained"
        if said != shown:
            console.print(said, highlight=False)
            shown = said
        if not running:
            return
        time.sleep(1)
