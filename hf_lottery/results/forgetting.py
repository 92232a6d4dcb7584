"""Forgetting: how much the loss on text that the task does not hold has risen from the pretrained model on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hf_lottery.results.metric import Metric

# in a line of results
BEFORE = "other_text_loss_before"  # of the pretrained model, in nats a token
AFTER = "other_text_loss"  # of the trained network
TEXT = "other_text"  # what the text is
TOKENS = "other_text_tokens"  # how many of it were measured

FORGETTING = "forgetting"  # AFTER - BEFORE; no field of a line
NATS = Metric(FORGETTING, greater_is_better=False)


def explained(lines: Iterable[Mapping[str, Any]]) -> str:
    """What forgetting is and on which text it was measured, one sentence; empty if no line has it."""
    texts = {(str(line.get(TEXT) or ""), line[TOKENS]): None for line in lines if isinstance(line.get(TOKENS), int)}
    if not texts:
        return ""
    said = " and ".join(f"{tokens:,} tokens" + (f" of {text}" if text else "") for text, tokens in texts)
    return (
        f"Forgetting is the rise of the loss, in nats a token, on text that the task does not hold: {said}, from the "
        "pretrained model to the trained network."
    )
