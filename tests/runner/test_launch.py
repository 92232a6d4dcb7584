"""Starting a run on several processes: `--launcher`, the bundled configs of `accelerate launch`, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from rich.console import Console

from hf_lottery.bundled import LAUNCHER_CONFIGS, bundled_folder
from hf_lottery.recipe.recipe import load_recipe
from hf_lottery.runner.launch import LAUNCHERS, relaunch, require_devices
from hf_lottery.runner.run import run

SMALL = ["training.max_steps=12", "training.eval_steps=6", "training.logging_steps=1", "lottery.num_rounds=1"]


def quickstart(folder: Path, launcher: str, *words: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "hf_lottery",
        "run",
        "quickstart",
        *SMALL,
        f"training.output_dir={folder}",
        *words,
        "--launcher",
        launcher,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def one_process(folder: Path, *words: str) -> Path:
    run(load_recipe("quickstart", [*SMALL, f"training.output_dir={folder}", *words]), Console(quiet=True))
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)
def test_the_experiment_on_two_processes_is_the_experiment(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    done = quickstart(two, "ddp:2", "training.use_cpu=true", "training.per_device_train_batch_size=30")
    assert done.returncode == 0, done.stderr[-3000:]
    one_process(one, "training.use_cpu=true")
    for a, b in zip(lines(two), lines(one), strict=True):
        assert a["control"] == b["control"]
        assert a["fingerprint"] == b["fingerprint"]
        assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-5)
    assert done.stdout.count("[1/3] replicate 0 · round 0 · dense") == 1  # rank 0 alone prints
    assert done.stdout.count("early-stop step") == 1
    assert (two / "ticket" / "mask.safetensors").read_bytes() == (one / "ticket" / "mask.safetensors").read_bytes()


@pytest.mark.parametrize("launcher", ["ddp", "ddp:", "ddp:0", "ddp:two", "dpp:2", "2"])
def test_a_launcher_that_does_not_exist(launcher):
    with pytest.raises(ValueError, match=f"--launcher is '{launcher}'.*such as ddp:2"):
        relaunch(launcher, ["run", "quickstart"])


@pytest.mark.timeout(900)
def test_bad_input_under_a_launcher_is_exit_status_2_without_a_traceback(tmp_path):
    done = quickstart(tmp_path, "ddp:2", "training.max_stps=3")  # found before there are two processes
    assert done.returncode == 2
    assert (
        done.stderr.count("is not a setting") == 1 and "did you mean" in done.stderr and "Traceback" not in done.stderr
    )

    code = "import sys; from hf_lottery.runner.launch import relaunch; "
    code += "sys.exit(relaunch('ddp:2', ['cp', 'no-such-recipe']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no-such-recipe" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_bundled_configs_are_what_accelerate_reads(name):
    config = load_config_from_file(str(bundled_folder() / LAUNCHER_CONFIGS / f"{name}.yaml"))
    kinds = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    assert config.distributed_type.value == kinds.get(name, "DEEPSPEED")
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if name.startswith("deepspeed"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
        assert config.deepspeed_config["zero3_init_flag"] is False


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="3 processes.*has 1 GPU: launch at most 1"):
        require_devices(use_cpu=False)
    require_devices(use_cpu=True)


@pytest.mark.cuda
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "single"])
def test_every_bundled_config_on_gpus_finds_the_mask_of_one_process(tmp_path, name):
    count = torch.cuda.device_count()
    batch = f"training.per_device_train_batch_size={60 // count}"
    done = quickstart(tmp_path / name, f"{name}:{count}", batch)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = [line["kept"] for line in lines(tmp_path / name)]
    assert kept == [line["kept"] for line in lines(one_process(tmp_path / "one", "training.use_cpu=true"))]
