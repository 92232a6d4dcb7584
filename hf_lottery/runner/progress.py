"""Progress bars of a run: one over its networks, one over the steps of the network being trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import Network

REFRESH_STEPS = 20


class NetworkProgress:
    """Bars on a terminal; if the output is no terminal, a line for every network that is started."""

    def __init__(self, console: Console):
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._experiment: Experiment | None = None

    @contextlib.contextmanager
    def over(self, experiment: Experiment) -> Iterator[None]:
        """Show the bars while the block runs."""
        self._experiment = experiment
        self._networks = self.bars.add_task("networks", total=None)
        self._steps = self.bars.add_task("starting", total=None)
        self._update()
        shown = self.bars if self.console.is_terminal else contextlib.nullcontext()
        with shown:
            yield
            self._update()

    def start(self, network: Network) -> None:
        """A network is about to be trained."""
        done, total = self._update()
        self.bars.reset(self._steps, description=str(network), total=None)
        if not self.console.is_terminal:
            self.console.print(f"[{done + 1}/{total}] {network}", highlight=False, markup=False)

    def wait(self, network: Network, holder: str) -> None:
        """A network that is needed is trained by another process."""
        self.console.print(f"waiting for {network}, which {holder} trains", highlight=False, markup=False)

    def diverged(self, sentence: str) -> None:
        """A network diverged: say so, and what is left out."""
        self.console.print(sentence, highlight=False, markup=False)

    def step(self, step: int, max_steps: int) -> None:
        """The network has been trained for `step` of `max_steps` steps."""
        self.bars.update(self._steps, completed=step, total=max_steps)

    def _update(self) -> tuple[int, int]:
        total = len(self._experiment.networks()) - len(self._experiment.left_out())
        done = total - len(self._experiment.pending())
        self.bars.update(self._networks, completed=done, total=total)
        return done, total


class StepCallback(TrainerCallback):
    """Shows the steps of a training on the bars."""

    def __init__(self, progress: NetworkProgress):
        self.progress = progress

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and (
            state.global_step % REFRESH_STEPS == 0 or state.global_step == state.max_steps
        ):
            self.progress.step(state.global_step, state.max_steps)
