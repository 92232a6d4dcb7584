"""Refuses a ticket of a network whose weights or loss are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_lottery.distributed.finite import first_not_finite, not_finite
from hf_lottery.layout import TICKET
from hf_lottery.mask import Mask
from hf_lottery.results.diverged import Diverged
from hf_lottery.ticket.document import TicketError
from hf_lottery.ticket.rewind_point import RewindPoint


def require_finite(mask: Mask, rewind: RewindPoint, info: Mapping[str, Any]) -> None:
    """Raise TicketError for a θ_k with nan or infinity, or if the network that has this mask diverged.

    −inf in a tensor without a mask is allowed: some models keep a causal mask in a buffer.
    """
    require_finite_tensors(rewind.tensors, mask, "the ticket's rewind point")
    fingerprint = mask.fingerprint()
    own = [
        line
        for line in info.get("results", [])
        if line.get("control") == TICKET and line.get("fingerprint") == fingerprint
    ]
    reasons = [reason for line in own if (reason := _not_a_number(line)) is not None]
    if own and len(reasons) == len(own):
        raise TicketError(f"{reasons[0]}, so that it is no ticket: lower the learning rate, or save an earlier round")


def require_finite_tensors(tensors: Mapping[str, Tensor], mask: Mapping[str, Tensor], what: str) -> None:
    """Raise TicketError naming the first tensor, and the place in it, that is nan or infinite."""
    for name in not_finite(tensors):
        value = tensors[name].detach()
        if name not in mask and not value.isnan().any() and not value.isposinf().any():
            continue
        if name not in mask:
            value = value.masked_fill(value.isneginf(), 0)
        place, found = first_not_finite(value)
        raise TicketError(
            f"'{name}' is {found:g} at {place} in {what}, so that no loss of it is a number: look for the first step "
            "at which the loss was not finite, and train again with a lower learning rate"
        )


def _not_a_number(line: Mapping[str, Any]) -> str | None:
    round = line.get("round")
    if Diverged.of_line(line) is not None:
        return f"round {round} diverged at {Diverged.of_line(line).where}"
    for key, value in line.items():
        if key.endswith("loss") and isinstance(value, float) and not math.isfinite(value):
            return f"the {key} of round {round} is {value}"
    return None
