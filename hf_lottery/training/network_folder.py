"""The folder of one trained network: its files, whether it is finished, and its line of results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_lottery.files import flush
from hf_lottery.finished import read_line, whole_file
from hf_lottery.layout import GENERATIONS_FILE, RESULT_FILE, STATE_FILE, TRAINED_FILE, Network
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.sealed import FILES, DamagedFile, file_records, write_sealed
from hf_lottery.ticket.rewind_point import RewindPoint


class NetworkFolder:
    """The folder of one trained network. It is finished if it has `result.json`: that file is written last.

    `result.json` has the sizes and checksums of the other files. Whoever reads one through this class, or through
    `hf_lottery.finished`, gets what was written, or a DamagedFile.

    Args:
        path: for the ticket of round 3 `round-03`, for a control of it `round-03/random_reinit-0`.
        network: which one it is, where that is known.
    """

    def __init__(self, path: str | os.PathLike, network: Network | None = None):
        self.path, self.network = Path(path), network

    @property
    def finished(self) -> bool:
        """Whether the network was trained to the end, and its result.json is whole."""
        try:
            return read_line(self.path, self.network) is not None
        except DamagedFile:
            return False

    def result(self) -> dict[str, Any]:
        """The network's line of results.jsonl.

        Raises:
            FileNotFoundError: the network is not finished.
            DamagedFile: its result.json has changed.
        """
        line = read_line(self.path, self.network)
        if line is None:
            raise FileNotFoundError(f"there is no {self.path / RESULT_FILE}: the network is not finished")
        return line

    def mask(self) -> Mask:
        """The mask that the network was trained under. Raises DamagedFile."""
        return Mask.load(whole_file(self.path, MASK_FILE))

    def trained(self) -> RewindPoint:
        """The weights at the end of training. Raises DamagedFile."""
        return RewindPoint.load(whole_file(self.path, TRAINED_FILE))

    def finish(self, mask: Mask, trained: RewindPoint, result: dict[str, Any]) -> None:
        """Write mask and trained weights, then `result.json`: after a crash the folder does not count as finished."""
        mask.save(self.path / MASK_FILE)
        trained.save(self.path / TRAINED_FILE)
        others = [name for name in (STATE_FILE, GENERATIONS_FILE) if (self.path / name).is_file()]
        for name in others:
            flush(self.path / name)
        write_sealed(
            self.path / RESULT_FILE, {**result, FILES: file_records(self.path, (MASK_FILE, TRAINED_FILE, *others))}
        )
