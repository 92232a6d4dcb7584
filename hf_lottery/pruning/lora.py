"""LoRA's pairs: what an entry, or a rank, of ΔW = B·A is worth.

A has the shape (rank, in, …) and B (out, rank, …). At the start B is zero, and what is pruned must not depend on it:
an all-zero B counts as if it were all ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import prune


def lora_pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """What adapter it is -> names of its A and B, by PEFT's names of parameters.

    The key is A's name with `lora_A` written as `lora` ("….q_proj.lora.default.weight").

    Raises:
        ValueError: a name is of no LoRA, or the other of a pair is missing.
    """
    names = set(names)
    pairs = {}
    for name in sorted(names):
        for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if f".{a}." in f".{name}.":
                other, is_a = name.replace(a, b), True
            elif f".{b}." in f".{name}.":
                other, is_a = name.replace(b, a), False
            else:
                continue
            if other not in names:
                raise ValueError(f"'{name}' is half of a LoRA and '{other}' is not there; a pair is judged together")
            if is_a:
                pairs[name.replace(a, a[:-2])] = (name, other)
            break
        else:
            raise ValueError(
                f"'{name}' is not a LoRA's A or B, which lora_product and pattern rank are for; "
                "leave it out with exclude_modules, or use criterion magnitude and pattern weight"
            )
    return pairs


def lora_product(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An entry by its effect on ΔW: |A_ij| · ‖B_:i‖ and |B_ki| · ‖A_i:‖, from the weights alone.

    Zeroing A_ij changes B·A by just that Frobenius norm, and so does zeroing B_ki. While B is zero it
    counts as all ones: A's entries are worth |A_ij| · √out and B's ‖A_i:‖.

    Raises:
        ValueError: a weight is of no LoRA, or the other of its pair is missing.
    """
    scores = {}
    for a_name, b_name in lora_pairs(weights).values():
        a, b = weights[a_name].detach(), weights[b_name].detach()
        a_norms, b_norms = _row_norms(a), _row_norms(b.transpose(0, 1))
        b_size = b.abs()
        if not b.any():
            b_norms, b_size = torch.full_like(b_norms, math.sqrt(len(b))), torch.ones_like(b)
        scores[a_name] = a.abs() * b_norms.to(a).view(-1, *[1] * (a.dim() - 1))
        scores[b_name] = b_size * a_norms.to(b).view(1, -1, *[1] * (b.dim() - 2))
    return {name: scores[name] for name in weights}


def rank_scores(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each rank of every LoRA is worth: ‖B_:i‖ · ‖A_i:‖, and ‖A_i:‖ while B is zero.

    Returns:
        name of the pair, as `lora_pairs` has it -> (rank,).

    Raises:
        ValueError: a weight is of no LoRA, or the other of its pair is missing.
    """
    scores = {}
    for pair, (a_name, b_name) in lora_pairs(weights).items():
        a, b = weights[a_name].detach(), weights[b_name].detach()
        scores[pair] = _row_norms(a) * (_row_norms(b.transpose(0, 1)).to(a.device) if b.any() else 1.0)
    return scores


def prune_ranks(
    weights: Mapping[str, Tensor],
    alive: Mask,
    rate: float,
    rates: Mapping[str, float] | None = None,
    scope: str = "layer",
) -> Mask:
    """One pruning of whole ranks: row i of A goes together with column i of B.

    Args:
        weights: name -> A or B of every LoRA, both of each pair.
        alive: the mask of the round that was trained. A rank is alive while any of its entries is.
        rate, scope: as for `prune`, with ranks in place of weights.
        rates: parameter name -> its own rate; those of a pair are the same.

    Raises:
        ValueError: as `prune` and `lora_pairs`; the two of a pair have different rates.
    """
    pairs, rates = lora_pairs(weights), rates or {}
    living, pair_rates = {}, {}
    for pair, (a, b) in pairs.items():
        living[pair] = alive[a].flatten(1).any(1) | alive[b].transpose(0, 1).flatten(1).any(1).to(alive[a].device)
        if rates.get(a, rate) != rates.get(b, rate):
            raise ValueError(f"'{a}' and '{b}' have different pruning rates; a rank goes from both: give them one")
        pair_rates[pair] = rates.get(a, rate)
    kept = prune(rank_scores(weights), Mask(living), rate, pair_rates, scope)
    result = {}
    for pair, (a, b) in pairs.items():
        result[a] = alive[a] & kept[pair].view(-1, *[1] * (alive[a].dim() - 1))
        result[b] = alive[b] & kept[pair].to(alive[b].device).view(1, -1, *[1] * (alive[b].dim() - 2))
    return Mask({name: result[name] for name in alive})


def require_comparable(weights: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a LoRA's B is still all zero, so that comparing it with other tensors would wipe it.

    Before training B's magnitudes are all ties at 0: by layers that removes exactly its share, over all tensors it
    would remove B first, whatever it is worth.
    """
    for name, weight in weights.items():
        if ".lora_B." in f".{name}." and not weight.any():
            raise ValueError(
                f"'{name}' is all zeros, as before training, and scope global would prune all of it for that: use "
                "criterion lora_product, pattern rank or scope layer, or train first"
            )


def _row_norms(matrix: Tensor) -> Tensor:
    return matrix.flatten(1).float().norm(dim=1)
