"""LoRA's pairs under a mask: which A belongs to which B, which ranks live, and how sparse ΔW = B·A is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask

_A = re.compile(r"(?P<module>.+)\.lora_A\.(?P<adapter>[^.]+)\.weight")
_ROWS = 4096  # of ΔW at a time


def pairs(names: Iterable[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(module, adapter) -> names of its A [r, in] and B [out, r], of parameter names as PEFT gives them."""
    names = set(names)
    found = {}
    for name in sorted(names):
        match = _A.fullmatch(name)
        if match is None:
            continue
        b = f"{match['module']}.lora_B.{match['adapter']}.weight"
        if b in names:
            found[match["module"], match["adapter"]] = (name, b)
    return found


def live_ranks(a: Tensor, b: Tensor) -> Tensor:
    """Which ranks can still change the output: bool [r], of the masks of A [r, in, …] and B [out, r, …].

    Rank i adds the product of B's column i and A's row i to ΔW: with either wholly pruned it adds nothing.
    """
    return a.flatten(1).any(dim=1) & b.flatten(1).any(dim=0)


def delta_counts(mask: Mask, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Module -> (entries of ΔW that can differ from 0, all of them), for every LoRA pair that the mask covers.

    Counted from the mask, not from the weights: entry (i, j) of ΔW = Σ_k B_ik·A_kj is zero whatever is learned exactly
    if no k has both kept. An adapter's own sparsity says little of it: at half of A's and B's entries and r = 16,
    nearly all of ΔW still moves.

    Args:
        mask: over A, B or both of a pair; what it does not cover counts as kept.
        parameters: name -> parameter, for the shape of what the mask does not cover.
    """
    counts = {}
    for (module, _), names in pairs(parameters).items():
        if not any(name in mask for name in names):
            continue
        a, b = (  # a convolution's A is [r, in, height, width], its B [out, r, 1, 1]
            (mask[n].float() if n in mask else torch.ones(parameters[n].shape, device=parameters[n].device)).flatten(1)
            for n in names
        )
        kept = sum(int((rows @ a.to(rows.device)).count_nonzero()) for rows in b.split(_ROWS))
        counts[module] = (kept, b.shape[0] * a.shape[1])
    return counts


def delta_density(mask: Mask, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """`delta_density` of a line of results, over all pairs; empty where the mask covers no LoRA."""
    counts = delta_counts(mask, parameters).values()
    total = sum(of for _, of in counts)
    return {"delta_density": sum(kept for kept, _ in counts) / total} if total else {}
