"""LoRA: which A and B are a pair, how their entries and ranks are scored and pruned, and how sparse ΔW = B·A is.

A has the shape (rank, in, …) and B (out, rank, …). At the start B is zero, and what is pruned must not depend on it:
while all of B is zero, scores are computed as if all of it were one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import prune

# PEFT's names: "….q_proj.lora_A.default.weight", and of an embedding "….lora_embedding_A.default"
_A_OR_B = re.compile(r"(?P<module>.+)\.lora_(?P<kind>|embedding_)[AB]\.(?P<adapter>[^.]+)(?P<end>|\.weight)")
_DELTA_ENTRIES = 1 << 26  # of ΔW computed at a time


def lora_pairs(names: Iterable[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(module, adapter) -> names of its A and B, from PEFT's parameter names.

    Args:
        names: parameter names; those of no LoRA, and an A or B without the other, are left out.
    """
    names, pairs = set(names), {}
    for name in sorted(names):
        match = _A_OR_B.fullmatch(name)
        if match is not None and names.issuperset(_pair(match)):
            pairs[match["module"], match["adapter"]] = _pair(match)
    return pairs


def require_lora(names: Iterable[str]) -> list[tuple[str, str]]:
    """The (A, B) of `lora_pairs`, if every name belongs to a pair.

    Raises:
        ValueError: a name is not of a LoRA, or the other one of its pair is missing.
    """
    names = set(names)
    pairs = list(lora_pairs(names).values())
    for name in sorted(names.difference(*pairs)):
        match = _A_OR_B.fullmatch(name)
        if match is not None:
            (other,) = set(_pair(match)) - {name}
            raise ValueError(f"'{name}' is half of a LoRA and '{other}' is not there; a pair is scored together")
        raise ValueError(
            f"'{name}' is not a LoRA's A or B, which lora_product and pattern rank are for; "
            "leave it out with exclude_modules, or use criterion magnitude and pattern weight"
        )
    return pairs


def lora_product(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An entry by its effect on ΔW: |A_ij| · ‖B_:i‖ and |B_ki| · ‖A_i:‖, from the weights alone.

    Setting A_ij to zero changes B·A by exactly that Frobenius norm, and so does setting B_ki to zero. While B is zero
    it counts as all ones: A's entries score |A_ij| · √out and B's ‖A_i:‖.

    Raises:
        ValueError: a weight is not of a LoRA, or the other one of its pair is missing.
    """
    scores = {}
    for a_name, b_name in require_lora(weights):
        a, b = weights[a_name].detach(), weights[b_name].detach()
        a_norms, b_norms = _row_norms(a), _row_norms(b.transpose(0, 1))
        b_size = b.abs()
        if not b.any():
            b_norms, b_size = torch.full_like(b_norms, math.sqrt(len(b))), torch.ones_like(b)
        scores[a_name] = a.abs() * b_norms.to(a).view(-1, *[1] * (a.dim() - 1))
        scores[b_name] = b_size * a_norms.to(b).view(1, -1, *[1] * (b.dim() - 2))
    return {name: scores[name] for name in weights}


def rank_scores(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The score of each rank of every LoRA: ‖B_:i‖ · ‖A_i:‖, and ‖A_i:‖ while B is zero.

    Returns:
        name of A -> (rank,).

    Raises:
        ValueError: a weight is not of a LoRA, or the other one of its pair is missing.
    """
    scores = {}
    for a_name, b_name in require_lora(weights):
        a, b = weights[a_name].detach(), weights[b_name].detach()
        scores[a_name] = _row_norms(a) * (_row_norms(b.transpose(0, 1)).to(a.device) if b.any() else 1.0)
    return scores


def prune_ranks(
    weights: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
) -> Mask:
    """One pruning of whole ranks: row i of A is pruned together with column i of B.

    Args:
        weights: name -> A or B of every LoRA, both of each pair.
        alive: the mask of the round that was trained. A rank is alive while any of its entries is.
        rate, scope: as for `prune`, with ranks in place of weights.
        rates: parameter name -> its own rate; those of a pair are the same.

    Raises:
        ValueError: as `prune` and `require_lora`; the two of a pair have different rates.
    """
    pairs, rates = require_lora(weights), rates or {}
    living, pair_rates = {}, {}
    for a, b in pairs:
        living[a] = alive[a].flatten(1).any(1) | alive[b].transpose(0, 1).flatten(1).any(1).to(alive[a].device)
        if rates.get(a, rate) != rates.get(b, rate):
            raise ValueError(f"'{a}' and '{b}' have different pruning rates: give a LoRA's A and B the same rate")
        pair_rates[a] = rates.get(a, rate)
    kept = prune(rank_scores(weights), Mask(living), rate, pair_rates, scope)
    result = {}
    for a, b in pairs:
        result[a] = alive[a] & kept[a].view(-1, *[1] * (alive[a].dim() - 1))
        result[b] = alive[b] & kept[a].to(alive[b].device).view(1, -1, *[1] * (alive[b].dim() - 2))
    return Mask({name: result[name] for name in alive})


def live_ranks(a: Tensor, b: Tensor) -> Tensor:
    """Which ranks can still change the output: bool [r], from the masks of A [r, in, …] and B [out, r, …].

    Rank i adds the product of B's column i and A's row i to ΔW: if either is pruned completely it adds nothing.
    """
    return a.flatten(1).any(dim=1) & b.flatten(1).any(dim=0)


def delta_counts(mask: Mask, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Module -> (entries of ΔW that can differ from 0, all of them), for every LoRA pair that the mask covers.

    Counted from the mask, not from the weights: entry (i, j) of ΔW = Σ_k B_ik·A_kj is zero for all values of A and B
    exactly if no k has both kept. The adapter's own sparsity does not show it: with half of A's and B's entries
    kept and r = 16, nearly all of ΔW can differ from 0.

    Args:
        mask: over A, B or both of a pair; what it does not cover counts as kept.
        parameters: name -> parameter, for the shape of what the mask does not cover.
    """
    counts = {}
    for (module, _), names in lora_pairs(parameters).items():
        if not any(name in mask for name in names):
            continue
        a, b = (  # a convolution's A is [r, in, height, width], its B [out, r, 1, 1]
            (mask[n].float() if n in mask else torch.ones(parameters[n].shape, device=parameters[n].device)).flatten(1)
            for n in names
        )
        rows = max(1, _DELTA_ENTRIES // a.shape[1])
        kept = sum(int((part @ a.to(part.device)).count_nonzero()) for part in b.split(rows))
        counts[module] = (kept, b.shape[0] * a.shape[1])
    return counts


def delta_density(mask: Mask, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """`delta_density` of a line of results, over all pairs; empty where the mask covers no LoRA."""
    counts = delta_counts(mask, parameters).values()
    total = sum(of for _, of in counts)
    return {"delta_density": sum(kept for kept, _ in counts) / total} if total else {}


def _pair(match: re.Match) -> tuple[str, str]:
    """(A, B) of the pair that a name belongs to, by its match of `_A_OR_B`."""
    module, kind, adapter, end = match.group("module", "kind", "adapter", "end")
    return tuple(f"{module}.lora_{kind}{letter}.{adapter}{end}" for letter in "AB")


def _row_norms(matrix: Tensor) -> Tensor:
    return matrix.flatten(1).float().norm(dim=1)
