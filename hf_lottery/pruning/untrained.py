"""What is refused after scoring: a mask of a LoRA that its start decided, not its training.

B starts at zero, and A does not. Before training, and after too little of it, scores in B are all the same, or all
smaller than those in A. Then the order of the indices decides what is pruned, or the comparison of A and B does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.processes import full
from hf_lottery.mask import Mask

MOST_BY_TIES = 0.5  # share of a tensor's pruned weights that equal scores may decide …
FEW_TIES = 10  # … where so many scores are equal, and
SHARE_OF_TIES = 0.1  # this share of the tensor's: half-precision weights have some equal scores by chance
LEAST_LEFT = 0.1  # density of a tensor, or of A or B of all modules, over that of all weights it is compared with;
SPARSE = 0.25  # where less than this is left of all, comparable scores differ by more, and single tensors may go:
LEAST_LEFT_OF_ALL = 0.02  # then the same of A, or B, of all modules alone


def require_trained_lora(
    scores: Mapping[str, Tensor],
    key: Callable[[Tensor], Tensor] | None,
    before: Mask,
    after: Mask,
    config: LotteryConfig,
    rates: Mapping[str, float],
) -> None:
    """Raise a ValueError if a pruning of a LoRA's A and B was decided by how they start, not by what they learned.

    That is so in two cases. Equal scores: more than half of the weights that it removes from a tensor have the same
    score as others that it keeps. (Not if that is 0, and other scores of the tensor are not: then training has reached
    only a part of it, such as the tokens of the data.) Under scope global, a comparison of A with B: it leaves a
    tensor, or A or B of all modules, less than a tenth of the density that it leaves the whole LoRA. (If that is below
    a quarter: it leaves A or B of all modules next to nothing, less than a fiftieth of it.)

    Criterion lora_product scores both by their effect on ΔW, which is comparable at any time: it may remove all of
    what has no effect.

    Args:
        scores, key: what was compared; those of no LoRA are not looked at.
        before, after: the mask before and after the pruning.
        config: how it was pruned.
        rates: parameter name -> its own rate, where it is not `config.pruning_rate`.
    """
    names = sorted(name for name in after if ".lora_" in f".{name}")
    if config.criterion == "lora_product":
        return
    for name in names:
        score = full(scores[name])
        score = score if key is None else key(score)
        _require_few_ties(name, score, before[name].to(score.device), after[name].to(score.device), config)
    if config.scope == "global":
        rate_of = {name: rates.get(name, config.pruning_rate) for name in names}
        for rate in sorted(set(rate_of.values())):
            _require_comparable([name for name in names if rate_of[name] == rate], before, after, config)


def refuse_untrained_start(weights: Mapping[str, Tensor], config: LotteryConfig, rates: Mapping[str, float]) -> None:
    """Raise a ValueError for criterion large_init at rewind step 0 over a LoRA whose B starts at zero.

    It scores weights by where they start, so `require_trained_lora` would refuse the first pruning.
    """
    if config.criterion != "large_init" or config.rewind_step != 0:
        return
    for name, weight in weights.items():
        if ".lora_" in f".{name}" and rates.get(name, config.pruning_rate) > 0 and not full(weight).any():
            raise ValueError(
                f"'{name}' is all zeros at rewind step 0, by which criterion large_init scores it: {_advice(config)}"
            )


def _require_few_ties(name: str, score: Tensor, before: Tensor, after: Tensor, config: LotteryConfig) -> None:
    alive, removed, kept = score[before], score[before & ~after], score[after]
    if not len(removed):
        return
    if not alive.any():
        if len(kept) or config.scope == "global":
            raise ValueError(f"{_all_zero(name, config)}, so that {_what_decides(kept, config)}: {_advice(config)}")
        return
    last = removed.max()
    equal, by_ties = int((alive == last).sum()), int((removed == last).sum())
    chosen_by_order = last != 0 and equal > by_ties > MOST_BY_TIES * len(removed)
    if chosen_by_order and equal >= max(FEW_TIES, SHARE_OF_TIES * len(alive)):
        raise ValueError(
            f"{equal:,} of the {len(alive):,} weights left in '{name}' have the same score by criterion "
            f"{config.criterion_name}, {float(last):.3g}, so that their order would decide which are pruned: "
            f"{_advice(config)}"
        )


def _all_zero(name: str, config: LotteryConfig) -> str:
    if config.criterion == "magnitude":
        return f"'{name}' is all zeros, as before training"
    return f"criterion {config.criterion_name} gives every weight of '{name}' the score 0"


def _what_decides(kept: Tensor, config: LotteryConfig) -> str:
    if len(kept):
        return "the order of its weights would decide which are pruned"
    return f"scope {config.scope} would prune all of it"


def _require_comparable(names: list[str], before: Mask, after: Mask, config: LotteryConfig) -> None:
    """The check of scope global, among tensors whose scores were compared."""
    density = _density(names, after)
    least, groups = (LEAST_LEFT_OF_ALL, []) if density < SPARSE else (LEAST_LEFT, [[name] for name in names])
    for half in (r"\.lora_(embedding_)?A\.", r"\.lora_(embedding_)?B\."):
        groups.append([name for name in names if re.search(half, f".{name}")])
    for group in filter(None, groups):
        left = _density(group, after)
        if left < least * density and left < _density(group, before):
            others = f" and the other {len(group) - 1} like it" if len(group) > 1 else ""
            raise ValueError(
                f"scope global would leave {left:.2%} of '{group[0]}'{others}, and {density:.2%} of the LoRA: by "
                f"criterion {config.criterion_name} A and B are not comparable yet: {_advice(config)}, or scope layer"
            )


def _density(names: list[str], mask: Mask) -> float:
    return sum(int(mask[name].count_nonzero()) for name in names) / sum(mask[name].numel() for name in names)


def _advice(config: LotteryConfig) -> str:
    if config.criterion == "large_init":
        return "set rewind_step to a later step, or use criterion lora_product"
    return "train first, for more steps, or use criterion lora_product"
