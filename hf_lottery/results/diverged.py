"""Networks that diverged, whose weights or loss became nan or infinite: how they are recorded, and what they end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_lottery.layout import TICKET, Network

_NAMED = 8  # networks that are left out are listed by name up to this number, the rest is a count


class DivergedError(ValueError):
    """What was asked for stands on a network that diverged; the message says where and when it did."""


@dataclass(frozen=True)
class Diverged:
    """What is recorded of a network that diverged, as `diverged` in its line of results.jsonl.

    Args:
        step: the training step at which it was seen first.
        tensor: the first parameter or buffer, in the model's order, that was not finite; None: the loss was not.
    """

    step: int
    tensor: str | None

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Diverged | None:
        """What a line of results records; None for a network that did not diverge."""
        found = line.get("diverged")
        if found is None or not isinstance(found, Mapping):
            return None
        return cls(int(found["step"]), found.get("tensor"))

    @property
    def where(self) -> str:
        """step 40 (weights of 'fc1.weight')"""
        return f"step {self.step} ({'its loss' if self.tensor is None else f'weights of {self.tensor!r}'})"


def sentence(line: Mapping[str, Any]) -> str:
    """replicate 1 diverged at round 0, step 40 (weights of 'fc1.weight'); for a control, its name stands before."""
    network, what = Network.of_line(line), Diverged.of_line(line)
    control = "" if network.control == TICKET else f"{network.control} {network.sample + 1} of "
    rate = "" if network.learning_rate is None else f" at learning rate {network.learning_rate!r}"
    return f"{control}replicate {network.replicate}{rate} diverged at round {network.round}, {what.where}"


def left_out(networks: Iterable[Network], diverged: Iterable[Network]) -> dict[Network, Network]:
    """A network that cannot be trained -> the diverged network that it stands on.

    Args:
        networks: any, finished or not.
        diverged: those that are recorded as diverged. They are finished, so never in the answer by themselves.
    """
    diverged, found = frozenset(diverged), {}
    for network in networks:
        below = network.needs()
        while below is not None and below not in diverged:
            below = below.needs()
        if below is not None:
            found[network] = below
    return found


def summary(lines: Iterable[Mapping[str, Any]]) -> str:
    """1 of 3 replicates diverged: replicate 1 diverged at round 0, step 40 (weights of 'fc1.weight').

    Empty if no network diverged.

    Args:
        lines: of all finished networks.
    """
    lines = list(lines)
    diverged = [line for line in lines if Diverged.of_line(line) is not None]
    tickets = [line for line in diverged if line["control"] == TICKET]
    controls = [line for line in diverged if line["control"] != TICKET]
    parts = []
    if tickets:
        count, of = len({line["replicate"] for line in tickets}), len({line["replicate"] for line in lines})
        parts.append(f"{count} of {of} replicate{'s' if of > 1 else ''} diverged: {_listed(tickets)}.")
    if controls:
        one = len(controls) == 1
        parts.append(
            f"{'1 control network' if one else f'{len(controls)} control networks'} diverged: {_listed(controls)}."
        )
    return " ".join(parts)


def _listed(lines: list[Mapping[str, Any]], most: int = 3) -> str:
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(map(sentence, lines[:most])) + more


def named(networks: Iterable[Network]) -> str:
    """Networks by name, at most eight: "replicate 1 · round 1 · ticket; …; and 12 more"."""
    networks = list(networks)
    more = f"; and {len(networks) - _NAMED} more" if len(networks) > _NAMED else ""
    return "; ".join(str(network) for network in networks[:_NAMED]) + more
