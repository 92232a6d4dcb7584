"""search.json: which search the rounds in a trainer's `output_dir` are of."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import Trainer

from hf_lottery.config import LotteryConfig
from hf_lottery.sealed import DamagedFile, read_sealed, write_sealed

SEARCH_FILE = "search.json"
# TrainingArguments that, with the LotteryConfig, say which search it is
_ARGUMENTS = ("seed", "data_seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "optim")


def claim_search(trainer: Trainer) -> None:
    """Write into `output_dir` which search it holds.

    Raises:
        ValueError: it holds another, or the file is damaged.
    """
    arguments = trainer.args.to_dict()
    mine = {**trainer.lottery_config.to_dict(), **{name: arguments[name] for name in _ARGUMENTS}}
    del mine["num_rounds"]  # with more rounds it is the same search, longer
    path = Path(trainer.args.output_dir) / SEARCH_FILE
    if not path.exists():
        write_sealed(path, mine)
        return
    try:
        mine, found = json.loads(json.dumps(mine)), read_sealed(path)
    except DamagedFile as damage:
        raise ValueError(
            f"{damage}. If the rounds in {path.parent} are of this search, remove this file and call again"
        ) from None
    found = {**LotteryConfig().to_dict(), **found}  # an older file lacks the settings that have been added since
    for name, value in mine.items():
        if found.get(name, value) != value:
            raise ValueError(
                f"{trainer.args.output_dir} holds rounds of a search with {name} {found[name]!r}, and it is "
                f"{value!r} now: set another output_dir"
            )
