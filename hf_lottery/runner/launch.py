"""Starting several processes for one run, and the checks once they communicate."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from hf_lottery.bundled import LAUNCHER_CONFIGS, bundled_folder
from hf_lottery.recipe.recipe import Recipe

LAUNCHERS = ("single", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")


def relaunch(launcher: str, arguments: Sequence[str]) -> int:
    """Run `hf-lottery ARGUMENTS` again, on several processes of this machine.

    Args:
        launcher: `NAME:N`: N processes as the bundled `recipes/accelerate/NAME.yaml` says, such as `ddp:2`.
        arguments: what the command line was, without the launcher: `run RECIPE [SECTION.KEY=VALUE ...]`.

    Returns:
        0, or the exit status of the first process that failed.

    Raises:
        ValueError: there is no such launcher, or N is not a number.
    """
    name, _, count = launcher.partition(":")
    if name not in LAUNCHERS or not re.fullmatch("[1-9][0-9]{0,5}", count):
        raise ValueError(
            f"--launcher is '{launcher}'; it must be NAME:N, N processes under one of {', '.join(LAUNCHERS)}, "
            "such as ddp:2"
        )
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    program = ["-m", "hf_lottery", *arguments]
    try:
        if name in ("single", "ddp"):  # `accelerate launch` starts one process on a machine without GPUs
            torchrun.run(torchrun.parse_args(["--standalone", "--nproc-per-node", count, *program]))
        else:
            from accelerate.commands.launch import launch_command, launch_command_parser

            config = bundled_folder() / LAUNCHER_CONFIGS / f"{name}.yaml"
            settings = ["--config_file", str(config), "--num_processes", count]
            launch_command(launch_command_parser().parse_args([*settings, *program]))
    except ChildFailedError as failed:
        return failed.get_first_failure()[1].exitcode  # that process printed why
    except SignalException as stopped:  # Ctrl-C, which every process received too
        return 128 + stopped.sigval
    return 0


def require_devices(use_cpu: bool) -> None:
    """Refuse more processes on this machine than it has GPUs; their first communication would fail.

    Raises:
        ValueError: a launcher started more.
    """
    import torch

    started = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and not use_cpu and started > (there := torch.cuda.device_count()):
        raise ValueError(
            f"{started} processes were started on this machine, which has {there} GPU{'s' * (there != 1)}: "
            f"launch at most {there} (--nproc_per_node of torchrun, --num_processes of accelerate launch)"
        )


def meet(recipe: Recipe) -> None:
    """Let the processes of a launcher communicate, and check that they can train one recipe. Nothing for one process.

    Raises:
        ValueError: they are more than this machine has GPUs, or were started with different recipes.
    """
    require_devices(recipe.training.get("use_cpu", False))
    recipe.training_arguments()  # TrainingArguments starts the process group
    require_same_recipe(recipe.to_yaml())


def require_same_recipe(text: str) -> None:
    """Stop every rank if one was started with another recipe.

    Args:
        text: the recipe as resolved.

    Raises:
        ValueError: on all ranks alike.
    """
    from hf_lottery.distributed.processes import require_agreement

    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    require_agreement("recipe", fingerprint, "start every rank with the same recipe and overrides")


def require_same_data(data) -> None:
    """Stop every rank if one has read other data: sizes, 32 examples of each part, and other text are compared.

    Args:
        data: a TaskData.

    Raises:
        ValueError: on all ranks alike.
    """
    from hf_lottery.distributed.processes import require_agreement, world_size

    if world_size() == 1:
        return
    seen = hashlib.sha256()
    for part in (data.train, data.validation, data.test):
        seen.update(str(len(part)).encode())
        for index in range(0, len(part), max(1, len(part) // 32)):
            example = part[index]
            for key in sorted(example):
                seen.update(key.encode() + _bytes(example[key]))
    seen.update(b"" if data.other_text is None else data.other_text.fingerprint().encode())
    require_agreement("data set", seen.hexdigest(), "give every node the same files")


def _bytes(value) -> bytes:
    import torch

    return value.contiguous().numpy().tobytes() if torch.is_tensor(value) else repr(value).encode()
