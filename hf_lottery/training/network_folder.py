"""The folder of one trained network: its files, whether it is finished, and its line of results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from hf_lottery.files import write_text
from hf_lottery.layout import RESULT_FILE, TRAINED_FILE
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.ticket.rewind_point import RewindPoint

SECONDS_FILE = "seconds"  # how long an unfinished training had taken at its last checkpoint


class NetworkFolder:
    """The folder of one trained network. It is finished if it has `result.json`: that file is written last.

    Args:
        path: for the ticket of round 3 `round-03`, for a control of it `round-03/random_reinit-0`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def finished(self) -> bool:
        """Whether the network was trained to the end and all its files are on disk."""
        return (self.path / RESULT_FILE).is_file()

    def result(self) -> dict[str, Any]:
        """The network's line of results.jsonl."""
        return json.loads((self.path / RESULT_FILE).read_text(encoding="utf-8"))

    def mask(self) -> Mask:
        """The mask that the network was trained under."""
        return Mask.load(self.path / MASK_FILE)

    def trained(self) -> RewindPoint:
        """The weights at the end of training."""
        return RewindPoint.load(self.path / TRAINED_FILE)

    def finish(self, mask: Mask, trained: RewindPoint, result: dict[str, Any]) -> None:
        """Write all three files; `result.json` last, so that after a crash the folder does not count as finished."""
        mask.save(self.path / MASK_FILE)
        trained.save(self.path / TRAINED_FILE)
        write_text(self.path / RESULT_FILE, json.dumps(result, indent=1) + "\n")


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest complete checkpoint in `folder`, which is one with `trainer_state.json`: Trainer writes that last.

    (transformers' `get_last_checkpoint` looks at names alone, and returns one whose writing was killed.)
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None
