"""Memory, file descriptors, threads and temporary files do not grow from round to round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from transformers import TrainerCallback

from hf_lottery import LotteryConfig

ROUNDS, WARM = 50, 10
GROWTH = 40 * 60_000  # bytes: 60 kB a round, which is allocator noise; a kept copy of the weights would be more
HIDDEN = 256


class Measure(TrainerCallback):
    """What the process holds at the end of each training."""

    def __init__(self, temporary: Path):
        self.temporary, self.rounds = temporary, []

    def on_train_end(self, args, state, control, **kwargs):
        process = psutil.Process()
        self.rounds.append(
            {
                "memory": process.memory_info().rss,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
                "temporary": len(list(self.temporary.rglob("*"))),
            }
        )


def search(folder: Path, temporary: Path) -> list[dict]:
    """A search of 50 rounds with checkpoints, evaluations and the best model at the end."""
    import torch

    from tests.tiny import Net, make_trainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Net()
    model.first, model.norm = torch.nn.Linear(12, HIDDEN), torch.nn.BatchNorm1d(HIDDEN)
    model.classifier = torch.nn.Linear(HIDDEN, 3)
    measure = Measure(temporary)
    trainer = make_trainer(
        folder,
        model=model,
        callbacks=[measure],
        lottery_config=LotteryConfig(num_rounds=ROUNDS, pruning_rate=0.05, rewind_step=1),
        max_steps=6,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="validation_loss",
        greater_is_better=False,
    )
    trainer.find_ticket()
    return measure.rounds


@pytest.mark.slow
def test_fifty_rounds_hold_no_more_than_ten(tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.crash.test_flat", str(tmp_path / "out"), str(temporary)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rounds = json.loads(done.stdout.splitlines()[-1])
    assert len(rounds) == ROUNDS + 1
    warm, last = rounds[WARM], rounds[-1]
    assert {key: last[key] - warm[key] for key in ("descriptors", "threads", "temporary")} == {
        "descriptors": 0,
        "threads": 0,
        "temporary": 0,
    }
    assert last["memory"] - warm["memory"] < GROWTH


if __name__ == "__main__":
    print(json.dumps(search(Path(sys.argv[1]), Path(sys.argv[2]))))
