"""Stopped: a signal has ended a run, at a step where a checkpoint was written."""

from __future__ import annotations

import signal


class Stopped(BaseException):
    """A signal has ended the run. What was trained is in the last checkpoint.

    Like KeyboardInterrupt it is no Exception: nothing that handles errors takes it for one.

    Attributes:
        number: of the signal.
        where: what was trained, and to which step; "" if it was nothing.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(number, where)
        self.number, self.where = number, where

    def __str__(self) -> str:
        name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"stopped by {name}{f' at {self.where}' if self.where else ''}"
