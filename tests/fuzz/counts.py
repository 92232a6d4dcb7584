"""What a fuzzer counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Counts:
    """How many inputs were tried, accepted and refused with our own error; what failed; the slowest, in seconds."""

    tried: int = 0
    ok: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
