"""Chains: controls that search for a mask of their own, each round standing on its own round before.

In an earlier version they had no search: at every round they had the ticket's mask, over the trained weights of the
ticket of the round before. Their lines of results have no `chain`. In round 1 that is the same network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hf_lottery.layout import CHAINS, Network

CHAIN = "chain"  # in a line of results: how many of its own rounds the network is the last of


def stands_on_ticket(line: Mapping[str, Any]) -> bool:
    """Whether a line is of a control of an earlier version, which did not stand on its own round before."""
    network = Network.of_line(line)
    return network.control in CHAINS and network.round > 1 and CHAIN not in line


def older_notes(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each control that has lines of an earlier version."""
    rounds: dict[str, set[int]] = {}
    for line in filter(stands_on_ticket, lines):
        rounds.setdefault(line["control"], set()).add(line["round"])
    return [
        f"{name} at round{'s' if len(found) > 1 else ''} {', '.join(map(str, sorted(found)))} is of an earlier "
        "version: the ticket's mask over the ticket's weights of the round before, instead of a search of its own. "
        "Run the recipe again to have that."
        for name, found in rounds.items()
    ]


def before_older(lines: Iterable[Mapping[str, Any]], networks: Iterable[Network]) -> set[Network]:
    """Those of `networks` that are rounds of a chain before one of an earlier version, which did not need them."""
    last: dict[Network, int] = {}
    for line in filter(stands_on_ticket, lines):
        network = Network.of_line(line)
        chain = replace(network, round=0)
        last[chain] = max(network.round, last.get(chain, 0))
    return {n for n in networks if n.round < last.get(replace(n, round=0), 0)}
