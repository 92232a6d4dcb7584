"""Text as networks read it, to measure a loss on it: blocks of a fixed number of tokens, equal for all networks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Blocks:
    """A text in blocks.

    Args:
        name: what it is, for readers.
        ids: token ids of each block; all blocks have one length.
    """

    name: str
    ids: list[list[int]]

    @property
    def block_length(self) -> int:
        return len(self.ids[0])

    @property
    def tokens(self) -> int:
        """How many tokens the blocks hold."""
        return len(self.ids) * self.block_length

    def fingerprint(self) -> str:
        """SHA-256 of the tokens, in hex."""
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()
