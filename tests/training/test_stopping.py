"""Stopping: what a first and a second signal do, to a process that is alone and to one that gets each signal twice."""

from __future__ import annotations

import os
import signal

import pytest

from hf_lottery.stopped import Stopped
from hf_lottery.training.stopping import Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_process_at_once(monkeypatch, capfd, number):
    monkeypatch.delenv("RANK", raising=False)
    stopping = Stopping()
    with stopping.on_signals():
        os.kill(os.getpid(), number)
        assert stopping.number == number
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), number)
        assert ended.value.code == 128 + number
    assert capfd.readouterr().err == "stopping at the next step, with a checkpoint; once more: at once\n"


@pytest.mark.parametrize("launched", [True, False])
def test_a_process_that_is_passed_its_signals_still_stops_with_a_checkpoint(monkeypatch, capfd, launched):
    if launched:
        monkeypatch.setenv("RANK", "0")
    stopping = Stopping() if launched else Stopping(passed_on=True)
    with stopping.on_signals():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match="stopped by Ctrl-C"):
            stopping.check()
    assert capfd.readouterr().err == "stopping at the next step, with a checkpoint\n"
