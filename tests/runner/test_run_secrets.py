"""A whole run with a token: no file of its folder has it, no worker is started with it, and the ticket has no path."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

TOKEN = "hf_abcDEFghiJKLmnoPQRstuVWXyz012345"
MANY_PROCESSES = [
    ["--workers", "2"],
    pytest.param(["--launcher", "ddp:2"], marks=pytest.mark.slow),
    pytest.param(["--submit", "local"], marks=pytest.mark.slow),
]
SMALL = ["training.max_steps=8", "training.eval_steps=4", "training.save_strategy=steps", "training.save_steps=4"]


def command_lines(stop: threading.Event, found: dict[int, str]) -> None:
    """Collect the command lines of all processes of this machine that have the token in them."""
    while not stop.wait(0.2):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if TOKEN in words:
                found[int(path.parent.name)] = words


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", MANY_PROCESSES)
def test_nobody_else_sees_the_token(tmp_path, how):
    words = [
        *("lottery.num_rounds=1", "experiment.replicates=1", "training.use_cpu=true", *SMALL),
        *(f"training.output_dir={tmp_path / 'out'}", f"training.hub_token={TOKEN}"),
        *("training.report_to=[tensorboard]", "experiment.controls=[]"),
        "training.per_device_train_batch_size=30",
    ]
    if how[0] == "--submit":
        pytest.importorskip("submitit")
    found, stop = {}, threading.Event()
    watcher = threading.Thread(target=command_lines, args=(stop, found))
    watcher.start()
    command = [sys.executable, "-m", "hf_lottery", "run", "quickstart", *words, *how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.communicate()[0]
    stop.set()
    watcher.join()
    assert process.returncode == 0, said
    assert set(found) <= {process.pid}
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()] and TOKEN not in said
    ticket = [path for path in written if path.parent.name == "ticket"]
    assert ticket or how[0] == "--submit"
    assert not [path for path in ticket if os.fsencode(tmp_path) in path.read_bytes()]
