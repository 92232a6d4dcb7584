"""Allocation: how many weights each tensor keeps where a rule decides it, not the scores (scopes erk and uniform)."""

from __future__ import annotations

from collections.abc import Mapping


def erk_share(shape: tuple[int, ...]) -> int:
    """Erdős–Rényi–Kernel: a tensor's share of what is kept is the sum of its dimensions.

    Density is then ε · (sum of dimensions) / (product of dimensions), so that small tensors stay denser.

    Source: Evci et al. 2020, RigL (arXiv 1911.11134), section 3, for convolutions with both kernel dimensions.
    """
    return sum(shape)


def uniform_share(shape: tuple[int, ...]) -> int:
    """The same density for every tensor: its share is its size."""
    size = 1
    for dimension in shape:
        size *= dimension
    return size


def allocate(capacities: Mapping[str, int], shares: Mapping[str, int], total: int) -> dict[str, int]:
    """Divide `total` among tensors: each keeps min(capacity, ε · share), with the one ε for which the sum is `total`.

    What exceeds a tensor's capacity is given to the others by their shares, as RigL solves for ε again once a density
    is capped at 1. Rounded by largest remainder, ties by name, so that the sum is exact.

    Args:
        capacities: name -> the most that it can keep: its alive weights.
        shares: name -> share, positive where the capacity is.
        total: 0 <= total <= sum of capacities.
    """
    kept, open_names = {}, sorted(capacities)
    left, share_of_open = total, sum(shares.values())
    while True:
        full = [name for name in open_names if capacities[name] * share_of_open <= shares[name] * left]
        if not full:
            break
        for name in full:
            kept[name] = capacities[name]
        open_names = [name for name in open_names if name not in kept]
        left, share_of_open = total - sum(kept.values()), sum(shares[name] for name in open_names)
    for name in open_names:
        kept[name] = shares[name] * left // share_of_open
    by_remainder = sorted(open_names, key=lambda name: (-(shares[name] * left % share_of_open), name))
    for name in by_remainder[: total - sum(kept.values())]:
        kept[name] += 1
    return {name: kept[name] for name in capacities}
