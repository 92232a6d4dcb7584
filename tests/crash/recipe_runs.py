"""Recipes that are run to their report and ticket: by the runner, by workers, and by the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from hf_lottery.cli.main import main
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner import workers
from hf_lottery.runner.run import run
from tests.crash.processes import fork

inputs = Path("set by write_inputs")  # data and recipes, beside the output folders and not watched


def write_inputs(folder: Path) -> None:
    """Make the folder of data and recipes, for this process and those that it forks."""
    global inputs
    inputs = folder
    write_data(folder / "data")


def write_data(folder: Path) -> None:
    """MNIST's four files with 120 and 40 images of 6 x 6 random pixels, brighter in the upper half for odd classes."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for prefix, count in (("train", 120), ("t10k", 40)):
        labels = np.arange(count) % 4
        images = draw.integers(0, 128, (count, 6, 6)) + 100 * (labels % 2)[:, None, None] * (np.arange(6) < 3)[:, None]
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def recipe(**sections) -> dict:
    """A small recipe on that data."""
    values = {
        "model": {"architecture": "lenet", "config": {"hidden_sizes": [12], "image_size": 6}},
        "data": {"task": "image_classification", "path": str(inputs / "data"), "validation_size": 20},
        "training": {
            "output_dir": "set by the run",
            "max_steps": 6,
            "per_device_train_batch_size": 20,
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "eval_strategy": "steps",
            "eval_steps": 3,
            "logging_steps": 3,
            "save_strategy": "steps",
            "save_steps": 2,
            "use_cpu": True,
        },
        "lottery": {"num_rounds": 2, "pruning_rate": 0.4},
        "experiment": {"replicates": 1, "controls": []},
    }
    return {name: {**values[name], **sections.get(name, {})} for name in values}


def prepare(folder: Path, **sections) -> list[str]:
    """Write the recipe, if it is not there; returns the words of `run`."""
    text = yaml.safe_dump(recipe(**sections))
    path = inputs / f"{zlib.crc32(text.encode()):08x}.yaml"
    if not path.exists():
        path.write_text(text)
    return [str(path), f"training.output_dir={folder}"]


def run_recipe(folder: Path, **sections) -> None:
    name, *overrides = prepare(folder, **sections)
    run(load_recipe(name, overrides))


def to_report_and_ticket(folder: Path) -> None:
    """Plots take most of the time of a report: one network and one control are enough."""
    run_recipe(folder, lottery={"num_rounds": 1}, experiment={"controls": ["random_reinit"]})


def measured_rewind_step(folder: Path) -> None:
    run_recipe(folder, lottery={"num_rounds": 1, "rewind_step": "auto", "rewind_steps": [0, 5], "pruning_rate": 0.4})


def two_replicates(folder: Path) -> None:
    run_recipe(folder, lottery={"num_rounds": 1, "rewind_step": 2}, experiment={"replicates": 2})


def side_by_side(folder: Path) -> None:
    """`hf-lottery run --workers 2`, whose workers are forked instead of started anew."""
    words = prepare(folder, lottery={"num_rounds": 1}, experiment={"replicates": 2})
    workers.subprocess = _Forking
    workers.run_side_by_side(load_recipe(words[0], words[1:]), words, 2)


def command_line(*words: str) -> None:
    """`hf-lottery WORDS` in this process."""
    sys.argv = ["hf-lottery", *words]
    os.environ["COLUMNS"] = "200"
    torch.set_num_threads(1)
    main()


class _Forking:
    """What runner.workers uses of the module subprocess; a process is a fork of this one."""

    class Popen:
        count = 0

        def __init__(self, command: Sequence[str], env=None, start_new_session: bool = False):
            self.returncode: int | None = None
            name = f"worker-{type(self).count}"
            type(self).count += 1
            self.pid = fork(lambda: command_line(*command[3:]), name, start_new_session)

        def poll(self) -> int | None:
            if self.returncode is None:
                done, status = os.waitpid(self.pid, os.WNOHANG)
                if done:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

        def wait(self) -> int:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self.returncode

        def terminate(self) -> None:
            if self.poll() is None:
                os.kill(self.pid, subprocess.signal.SIGTERM)
