"""The command line: what it prints, where, and its exit status."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_lottery import __version__, cli
from hf_lottery.bundled import bundled_folder, bundled_recipes


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `hf-lottery ARGUMENTS` here, in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-lottery", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (stopped.value.code or 0, *capsys.readouterr())

    return run


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=250)


def test_a_bad_recipe_is_exit_status_2_with_every_error_and_no_traceback(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {architecture: lent}\ntraining:\n  max_stps: 3\n")
    done = python("-m", "hf_lottery", "check", "bad.yaml", "lottery.scope=layr", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if "kernels-community" not in line]  # bitsandbytes, at import
    assert [line.split(": ")[0] for line in said] == [
        "bad.yaml:1",
        "bad.yaml:1",
        "bad.yaml:3",
        "override 'lottery.scope=layr'",
    ]


def test_help_ls_and_cp_answer_without_torch(tmp_path):
    script = """
import sys
from hf_lottery.cli import main
for arguments in (["--help"], ["ls"], ["cp", "quickstart"], ["run", "--help"], ["--version"]):
    sys.argv = ["hf-lottery", *arguments]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, stopped.code
print("heavy:", sorted({"torch", "transformers", "numpy", "peft", "matplotlib"} & sys.modules.keys()))
"""
    done = python("-c", script, cwd=tmp_path)
    assert done.stdout.endswith("heavy: []\n"), done.stdout + done.stderr


def test_ls_names_every_recipe_with_the_first_line_of_its_file(command):
    status, out, _ = command("ls")
    assert status == 0
    assert {"quickstart", "mnist/lenet-300-100"} <= bundled_recipes().keys()
    for name, path in bundled_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
        assert any(line.split() == [*name.split(), *first[2:].split()] for line in out.splitlines()), out


def test_every_bundled_recipe_tells_the_command_that_runs_it_and_the_hardware():
    for name, path in bundled_recipes().items():
        text = path.read_text(encoding="utf-8")
        assert f"hf-lottery run {name}" in text, path
        assert "# Hardware: " in text, path


def test_cp_copies_byte_for_byte_and_overwrites_only_when_told(command):
    status, out, _ = command("cp", "mnist/lenet-300-100")
    assert status == 0
    assert "hf-lottery check lenet-300-100.yaml" in out
    original = (bundled_folder() / "mnist" / "lenet-300-100.yaml").read_bytes()
    assert Path("lenet-300-100.yaml").read_bytes() == original

    Path("lenet-300-100.yaml").write_text("mine")
    status, _, err = command("cp", "mnist/lenet-300-100")
    assert status == 2
    assert err == (
        "hf-lottery: lenet-300-100.yaml is there already; give another destination, or --force to write over it\n"
    )
    assert Path("lenet-300-100.yaml").read_text() == "mine"
    assert command("cp", "mnist/lenet-300-100", "--force")[0] == 0
    assert Path("lenet-300-100.yaml").read_bytes() == original


def test_cp_writes_into_a_folder_or_to_a_new_name(command):
    Path("folder").mkdir()
    assert command("cp", "quickstart", "folder")[0] == 0
    assert Path("folder/quickstart.yaml").is_file()
    assert command("cp", "quickstart.yaml", "new/mine.yaml")[0] == 0
    assert Path("new/mine.yaml").is_file()


def test_check_says_what_would_be_trained(command):
    status, out, err = command(
        "check",
        "quickstart",
        "training.max_steps=70",
        "lottery.num_rounds=3",
        "experiment.replicates=2",
        "experiment.controls={random_reinit: {per_ticket: 3}, one_shot: {rounds: [1, 3]}}",
    )
    assert (status, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["recipe"].startswith("quickstart is valid")
    assert rows["training"].startswith("70 steps of batch 60 a device, adamw_torch at 0.0012")
    assert rows["densities"].startswith("planned 100%, 80%, 64%, 51.2% where the rate is 0.2, 0.1 a round for classif")
    assert rows["controls"] == "random_reinit x 3; one_shot at rounds 1, 3"
    # of each replicate: rounds 0 to 3 (the dense network is round 0), 3 x 3 re-initialised, 2 one-shot
    assert rows["networks"] == f"{2 * (4 + 9 + 2)} to train, over 2 replicates"


def test_what_training_arguments_refuse_check_tells(command):
    status, _, err = command("check", "quickstart", "training.load_best_model_at_end=true")
    assert status == 2
    assert "strategy" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["check", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
        (["check", "quickstrat"], "did you mean 'quickstart'?"),
        (["cp", "quickstrat"], "did you mean 'quickstart'?"),
        (["cp", "quickstart", "file/x.yaml"], "hf-lottery: File exists: file"),
        (["check", "quickstart", "data.path=nowhere"], "data.path is 'nowhere', and there is no such file or folder"),
        (["chek"], "chek"),
        (["check"], "RECIPE"),
    ],
)
def test_what_the_user_can_put_right_is_one_message_and_exit_status_2(command, arguments, words):
    Path("file").write_text("")
    status, out, err = command(*arguments)
    assert status == 2
    assert out == ""
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "raised, status",
    [
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "x.yaml"), 2),
        (ValueError("x"), 2),
    ],
)
def test_what_stops_a_command_decides_its_exit_status(command, monkeypatch, raised, status):
    monkeypatch.setattr(shutil, "copyfile", raising(raised))
    found, _, err = command("cp", "quickstart")
    assert found == status
    assert "Traceback" not in err
    if isinstance(raised, OSError):
        assert err == "hf-lottery: No space left on device: x.yaml\n"


def test_a_fault_of_ours_keeps_its_traceback(command, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", raising(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        command("cp", "quickstart")


def raising(error: BaseException):
    def function(*_):
        raise error

    return function


def test_version():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"hf_lottery {__version__}\n")
