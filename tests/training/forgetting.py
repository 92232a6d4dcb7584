"""A search for a ticket of a language model on some processes; writes its rounds' losses on other text.

`forgetting.py SETUP FOLDER N` starts N ranks, as tests/launched.py does; SETUP is one of its SETUPS.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import torch
from torch.multiprocessing import start_processes

from hf_lottery import LotteryConfig, LotteryTrainer
from hf_lottery.distributed.processes import leave
from hf_lottery.results.forgetting import AFTER, BEFORE
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset
from hf_lottery.text_blocks import Blocks
from hf_lottery.training.other_text import loss_on
from hf_lottery.training.search import Search
from tests import launched, tiny_lm

IDS = torch.randint(0, 256, (5, 24), generator=torch.Generator().manual_seed(0)).tolist()


def main(setup: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if setup.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as in tests/launched.py
    rows = torch.randint(0, 40, (96, 16), generator=torch.Generator().manual_seed(1)).tolist()
    data = TokenDataset([{"input_ids": row, "labels": row} for row in rows])
    trainer = LotteryTrainer(
        tiny_lm.model(tie_word_embeddings=False),
        launched.arguments(setup, folder / setup, eval_strategy="no", save_strategy="no"),
        data_collator=PaddingCollator(0),
        train_dataset=data,
        lottery_config=LotteryConfig(num_rounds=1, pruning_rate=0.4, scope="global", rewind_step=0),
    )
    trainer.other_text = Blocks("a text", IDS)
    trainer.find_ticket()
    found = [Search(trainer).round_folder(number).result() for number in (0, 1)]
    report = {
        "lines": [[line[BEFORE], line[AFTER]] for line in found],
        "steps": [line["steps"] for line in found],
        "again": loss_on(trainer.model, trainer.other_text),
    }
    leave()
    (folder / f"{setup}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(report))


def one_of(rank: int, count: int, port: int, setup: str, folder: Path) -> None:
    if count > 1:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}})
    main(setup, folder)


if __name__ == "__main__":
    setup, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(one_of, (count, port, setup, folder), nprocs=count, start_method="fork")
