"""A metric that is not in the package is code: it is run only if the command line says so, and then aloud."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_lottery import cli, metrics
from hf_lottery.bundled import bundled_recipes

SMALL = ["training.max_steps=20", "training.eval_steps=20", "lottery.num_rounds=1", "experiment.replicates=1"]
SMALL += ["experiment.controls=[]", "training.use_cpu=true", "training.output_dir=out"]
FLAG = "--trust-metric-code"
SOURCE = Path(metrics.__path__[0], "accuracy", "accuracy.py").read_text()
RUNS = f"hf-lottery: {FLAG}: runs the code in "


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the metric `accuracyx`, which leaves a file `RAN` when its code is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as in `python -m hf_lottery`
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    write_metric("accuracyx", SOURCE.replace('"accuracy": ', '"accuracyx": ') + "\nopen('RAN', 'w').close()\n")
    Path("accuracyx/__init__.py").write_text("open('RAN', 'w').close()\n")


@pytest.fixture
def refused(folder, monkeypatch, capsys):
    """Runs a command that ends with exit status 2, and returns what it says."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hf-lottery", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        err = capsys.readouterr().err
        assert stopped.value.code == 2
        assert "Traceback" not in err
        return err

    return run


def in_a_process(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(metrics.__path__[0]).parents[1])}
    command = [sys.executable, "-m", "hf_lottery", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def write_metric(name: str, text: str) -> None:
    Path(name).mkdir()
    Path(name, f"{name}.py").write_text(text)


@pytest.mark.parametrize("name", ["accuracyx", "./accuracyx", "accuracyx/accuracyx.py", "someone/metric"])
@pytest.mark.parametrize("command", [["check"], ["run", *SMALL], ["run", *SMALL, "--plan"]], ids=lambda c: c[-1][:9])
def test_a_recipe_cannot_run_the_code_of_a_metric(name, command, refused):
    said = refused(command[0], "quickstart", f"metrics=[{name}]", *command[1:])
    assert f"metrics has '{name}'" in said
    assert f"which is run only with {FLAG}" in said
    assert not Path("RAN").exists() and not Path("out").exists()


def test_no_key_of_a_recipe_allows_it(refused):
    values = yaml.safe_load(bundled_recipes()["quickstart"].read_text()) | {"metrics": ["accuracyx"]}
    keys = ("trust_metric_code", "trust_remote_code", "trust-metric-code", FLAG)
    for section in (*(values[name] for name in ("model", "data", "training", "lottery", "experiment")), values):
        section.update(dict.fromkeys(keys, True))
    Path("evil.yaml").write_text(yaml.dump(values))
    said = refused("run", "evil.yaml")
    assert "metrics has 'accuracyx'" in said
    assert said.count("_code") >= 2 * 6 and said.count("is not a se") == 6 * len(keys)
    assert not Path("RAN").exists()


def test_with_the_flag_it_is_run_and_said(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-lottery", "run", "quickstart", *SMALL, "metrics=[accuracyx]", FLAG])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert f"{RUNS}{Path('accuracyx/accuracyx.py').absolute()}\n" in capsys.readouterr().err
    assert Path("RAN").exists()
    assert Path("out/command").read_text().splitlines()[0].endswith(FLAG)
    assert '"test_accuracyx"' in Path("out/results.jsonl").read_text()


@pytest.mark.slow
def test_with_the_flag_it_reaches_workers_and_stays_out_of_the_output_folders_recipe(folder, refused):
    done = in_a_process("run", "quickstart", *SMALL, "metrics=[accuracyx]", FLAG, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert f"{RUNS}{Path('accuracyx/accuracyx.py').absolute()}\n" in done.stderr
    assert Path("RAN").exists()
    assert Path("out/command").read_text().splitlines()[0].endswith(FLAG)
    assert '"test_accuracyx"' in Path("out/results.jsonl").read_text()
    # the output folder's own recipe does not allow it either
    assert "metrics has 'accuracyx'" in refused("check", "out/recipe.yaml")
    assert "metrics has 'accuracyx'" in refused("run", "quickstart", *SMALL, "metrics=[accuracyx]")


@pytest.mark.slow
def test_with_the_flag_it_reaches_the_processes_of_a_launcher(folder):
    done = in_a_process("run", "quickstart", *SMALL, "metrics=[accuracyx]", FLAG, "--launcher", "ddp:2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(RUNS) == 1  # rank 0 says it
    assert '"test_accuracyx"' in Path("out/results.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty", "x = 1\n", "no metric can be loaded from the code in"),
        ("broken", "x = (\n", "SyntaxError"),
        ("raises", "raise SystemError('no')\n", "SystemError: no"),
        ("fails", SOURCE.replace("_compute(", "_compute(self, **x):\n        raise KeyError('k')\n\n    def x("),
         "the metric 'fails' failed (KeyError: 'k')"),
        ("other", SOURCE, "the metric other returns accuracy, and no 'other'"),
        ("missing", None, "on the Hub"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_work_is_a_sentence(name, text, words, refused):
    if text is not None:
        write_metric(name, text)
    assert words in refused("run", "quickstart", *SMALL, f"metrics=[{name}]", FLAG)
