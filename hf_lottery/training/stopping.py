"""Stopping: SIGTERM or Ctrl-C ends a training at its next step, with a checkpoint that it continues from."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from transformers import TrainerCallback

from hf_lottery.distributed.processes import gathered, is_main, world_size
from hf_lottery.stopped import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGREE_EVERY = 10  # several processes compare notes only at every tenth step, which costs time


class Stopping(TrainerCallback):
    """Ends training at the next step after a signal: a checkpoint is written, then Stopped is raised.

    A second signal ends the process at once, unless another process passes signals on to this one: a signal to all
    processes of a terminal or a job then comes twice.

    Args:
        passed_on: whether one does, such as the one that started the workers.
    """

    def __init__(self, passed_on: bool = False):
        self.passed_on = passed_on or "RANK" in os.environ  # torchrun and accelerate do
        self.number: int | None = None
        self._saving = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take the signals in the block, but for one that is ignored. (Only the main thread of a process can.)"""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
        try:
            for number in before:
                signal.signal(number, self._take)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self, where: str = "") -> None:
        """Raise Stopped if a signal has come to any process. All ranks must call this together."""
        if number := max(gathered(self.number or 0)):
            raise Stopped(number, where)

    def _take(self, number: int, frame: object) -> None:
        if self.number is not None and not self.passed_on:
            sys.exit(128 + number)
        first, self.number = self.number is None, self.number or number
        if first and is_main():
            again = "" if self.passed_on else "; once more: at once"
            with suppress(OSError):  # straight to the terminal: print fails where the signal comes within a print
                os.write(2, f"stopping at the next step, with a checkpoint{again}\n".encode())

    def on_step_end(self, args, state, control, **kwargs):
        if world_size() > 1 and state.global_step % AGREE_EVERY:
            return
        if max(gathered(self.number or 0)):
            control.should_save = self._saving = True

    def on_save(self, args, state, control, **kwargs):
        if self._saving:
            self.check(f"step {state.global_step} of {state.max_steps}")
