"""What criteria that look at data score in several gloo processes: `calibrated.py FOLDER PROCESSES…`.

Every process writes its scores and its mask to FOLDER/NETWORK-CRITERION-PROCESSES-RANK.pt.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed
from torch.multiprocessing import start_processes
from torch.utils.data import TensorDataset
from transformers import TrainingArguments

from hf_lottery import LotteryConfig, LotteryTrainer
from hf_lottery.distributed.processes import leave
from hf_lottery.models.lenet import LeNetConfig, LeNetForImageClassification
from hf_lottery.pruning.step import score
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset
from tests import tiny, tiny_lm
from tests.launched import collate

GLOBAL_BATCH = 16
EXAMPLES = 100  # 6 batches and a quarter of one
CRITERIA = ("snip", "grasp", "wanda")


def lenet():
    torch.manual_seed(0)
    return LeNetForImageClassification(LeNetConfig(hidden_sizes=[17, 11], image_size=6))


def images():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(EXAMPLES, 1, 6, 6, generator=draw), torch.randint(0, 10, (EXAMPLES,), generator=draw)


def texts():
    """Rows of 3 to 20 tokens, of which the first third has no label."""
    draw = torch.Generator().manual_seed(2)
    rows = []
    for _ in range(EXAMPLES):
        tokens = torch.randint(1, 260, (int(torch.randint(3, 21, (), generator=draw)),), generator=draw).tolist()
        rows.append({"input_ids": tokens, "labels": [-100] * (len(tokens) // 3) + tokens[len(tokens) // 3 :]})
    return rows


NETWORKS = {
    "images": lambda: (lenet(), TensorDataset(*images()), collate),
    "texts": lambda: (tiny_lm.model(), TokenDataset(texts()), PaddingCollator(0)),
    "norm": lambda: (tiny.seeded_net(), tiny.examples(EXAMPLES), None),
}


def trainer(network: str, criterion: str, folder: Path) -> LotteryTrainer:
    model, data, collator = NETWORKS[network]()
    world = int(os.environ.get("WORLD_SIZE", 1))
    args = TrainingArguments(
        folder / network,
        per_device_train_batch_size=GLOBAL_BATCH // world,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        max_steps=1,
        ddp_backend="gloo" if world > 1 else None,
    )
    config = LotteryConfig(criterion=criterion, pruning_rate=0.3, scope="global")
    return LotteryTrainer(model, args, collator, data, lottery_config=config)


def one_of(rank: int, count: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if count > 1:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in here.items()}})
    for network in NETWORKS:
        for criterion in CRITERIA:
            pruned = trainer(network, criterion, folder)
            assert pruned.args.world_size == count
            scores, _ = score(pruned.pruning_context())
            result = {"scores": dict(scores), "mask": dict(pruned.prune())}
            torch.save(result, folder / f"{network}-{criterion}-{count}-{rank}.pt")
    leave()


def main(folder: Path, counts: list[int]) -> None:
    for count in counts:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start_processes(one_of, (count, port, folder), nprocs=count, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(count) for count in sys.argv[2:]])
