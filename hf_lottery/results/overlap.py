"""Mask overlap: how many kept weights the masks of two replicates share, and how many random masks would."""

from __future__ import annotations

import contextlib
import math
import os
from itertools import combinations
from typing import TypedDict

from hf_lottery.finished import whole_file
from hf_lottery.layout import TICKET, Network
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.results.results import Results
from hf_lottery.sealed import DamagedFile


class Overlap(TypedDict):
    """One round: Jaccard overlap over all pairs of replicates (mean, min, max), chance, and `n`, how many pairs."""

    round: int
    density: float
    jaccard: float
    minimum: float
    maximum: float
    chance: float
    n: int


def jaccard(a: Mask, b: Mask) -> float:
    """Weights that both masks keep / weights that either keeps, over all tensors; NaN when neither keeps any."""
    union = (a | b).count()
    return (a & b).count() / union if union else math.nan


def chance(a: Mask, b: Mask) -> float:
    """The Jaccard overlap of two random masks with as many kept weights in every tensor as `a` and `b` have.

    Random choices of i and of j among n weights share i·j/n on average (hypergeometric mean), so the overlap is
    Σ i·j/n / Σ (i + j − i·j/n) over the tensors; for one tensor of density d in both masks, d / (2 − d).
    """
    shared = either = 0.0
    ours, theirs = a.counts(), b.counts()
    for name, (kept, total) in ours.items():
        both = kept * theirs[name][0] / total
        shared += both
        either += kept + theirs[name][0] - both
    return shared / either if either else math.nan


def overlaps(output_dir: str | os.PathLike, results: Results) -> list[Overlap]:
    """The overlap of the ticket's masks between replicates, one row per round from round 1.

    A replicate without its mask file, or with a damaged one, is left out; with fewer than two masks `n` is 0 and the
    values are NaN.
    """
    rows = []
    for round in results.rounds(TICKET):
        if round == 0:
            continue
        masks = _masks(output_dir, results, round)
        pairs = [(jaccard(a, b), chance(a, b)) for a, b in combinations(masks, 2)]
        found = [pair[0] for pair in pairs] or [math.nan]
        rows.append(
            Overlap(
                round=round,
                density=results.density(TICKET, round),
                jaccard=sum(found) / len(found),
                minimum=min(found),
                maximum=max(found),
                chance=sum(pair[1] for pair in pairs) / len(pairs) if pairs else math.nan,
                n=len(pairs),
            )
        )
    return rows


def _masks(output_dir: str | os.PathLike, results: Results, round: int) -> list[Mask]:
    masks = []
    for line in results.select(TICKET, round):
        with contextlib.suppress(FileNotFoundError, DamagedFile):
            masks.append(Mask.load(whole_file(Network.of_line(line).folder(output_dir), MASK_FILE)))
    return masks
