"""The core works with torch, numpy, transformers, accelerate, peft, safetensors and huggingface_hub alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hf_lottery

CORE = """
import sys

BLOCKED = {"bitsandbytes", "datasets", "deepspeed", "evaluate", "matplotlib", "mlxtend", "psutil", "pydantic", "rich",
           "ruamel", "scipy", "submitit", "torchvision", "typer"}


class Blocked:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame is not None and name.partition(".")[0] in BLOCKED:
            file = frame.f_code.co_filename
            if "site-packages" in file:
                return None  # another package asks for it
            if f"{PACKAGE}/" in file:
                raise ModuleNotFoundError(f"{name} is not installed here, and {file} asks for it")
            frame = frame.f_back


PACKAGE = sys.argv[1]
sys.meta_path.insert(0, Blocked())

import torch
from torch import nn
from transformers import TrainingArguments

from hf_lottery import LotteryConfig, LotteryTrainer, Ticket


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x, labels):
        logits = self.b(torch.relu(self.a(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


rows = [{"x": torch.randn(8), "labels": torch.tensor(i % 2)} for i in range(32)]
args = TrainingArguments("out", max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
config = LotteryConfig(num_rounds=1, pruning_rate=0.5)
ticket = LotteryTrainer(Net(), args, train_dataset=rows, eval_dataset=rows, lottery_config=config).find_ticket()
ticket.save_pretrained("ticket")
model = Ticket.from_pretrained("ticket").apply_to(Net())
assert int((model.a.weight == 0).sum()) == 64
"""


def test_a_ticket_is_found_saved_and_applied_without_the_other_packages(tmp_path):
    package = Path(hf_lottery.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", CORE, str(package)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
