"""When dynamic sparsity changes the mask and by how much, and the settings that it works with. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_lottery.config import LotteryConfig

RIGL, SET = "rigl", "set"  # how weights are regrown, and the controls of these names
DYNAMIC = (RIGL, SET)
LARGEST_SHARE = 0.3  # α of Evci et al. 2020, section 3
END = 0.75  # T_end, as a share of all steps: the same
LONGEST_INTERVAL = 100  # ΔT, in steps: the same
INTERVALS = 20  # in a training of fewer than 20 · ΔT steps, which the paper does not have
SHORTEST_INTERVAL = 2  # with 1 the weights would never be trained
SHORTEST_TRAINING = 3  # one change, at step 2
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


@dataclass(frozen=True)
class MaskSchedule:
    """Which steps of a training change the mask, and what share of the kept weights each of them exchanges.

    ΔT is 100 steps, as in the paper; in a training of fewer than 2,000 steps it is a twentieth of them, so that there
    are 14 changes in any training of 20 steps or more, and regrown weights have as large a part of it to grow in.

    Args:
        max_steps: of the training.

    Source: RigL, Evci et al. 2020 (arXiv 1911.11134), section 3 (2), "update schedule".
    """

    max_steps: int

    @property
    def interval(self) -> int:
        """ΔT, in steps."""
        return max(SHORTEST_INTERVAL, min(LONGEST_INTERVAL, self.max_steps // INTERVALS))

    def changes_at(self, step: int) -> bool:
        """Whether this step changes the mask; the first step is 1."""
        return step % self.interval == 0 and step < END * self.max_steps

    def share(self, step: int) -> float:
        """α/2 · (1 + cos(πt / T_end)): which share of a tensor's kept weights this step drops."""
        return LARGEST_SHARE / 2 * (1 + math.cos(math.pi * step / (END * self.max_steps)))


def unfit_setting(
    control: str, lottery: LotteryConfig, training: Mapping[str, Any]
) -> tuple[tuple[str, str], str] | tuple[None, None]:
    """The first setting with which dynamic sparsity does not work.

    Args:
        control: its name.
        lottery: how tickets are found.
        training: TrainingArguments by name; what is absent has its default.

    Returns:
        (section, key) of the setting, and a sentence about it; (None, None) if there is none.
    """
    by_weight = f"the control {control} exchanges single weights"
    optim, max_steps = training.get("optim"), training.get("max_steps", -1)
    problems = {
        ("lottery", "pattern"): lottery.pattern != "weight"
        and f"pattern is {lottery.pattern}, and {by_weight}: use pattern weight",
        ("lottery", "prune_embeddings"): lottery.prune_embeddings is not None
        and f"prune_embeddings is {lottery.prune_embeddings}, and {by_weight}: leave it out",
        ("lottery", "pruned_value"): lottery.pruned_value != "zero"
        and f"pruned_value is {lottery.pruned_value}, and the control {control} regrows weights from zero: use zero",
        ("training", "optim"): optim not in (None, *OPTIMIZERS)
        and f"optim is {optim}, and the control {control} knows how weights come in late only in "
        f"{', '.join(OPTIMIZERS)}: use one of these",
        ("training", "fp16"): bool(training.get("fp16"))
        and f"fp16 is true, and the control {control} takes gradients that are not scaled: use bf16",
        ("training", "fsdp"): bool(training.get("fsdp")) and f"fsdp is set, and {whole_weights(control)}",
        ("training", "max_steps"): 0 < max_steps < SHORTEST_TRAINING
        and f"max_steps is {max_steps}, and the control {control} {needs_steps()}: train for more",
    }
    for path, sentence in problems.items():
        if sentence:
            return path, f"{sentence}, or leave out this control"
    return None, None


def whole_weights(control: str) -> str:
    """A clause of the sentences that refuse a launcher which shards weights."""
    return f"the control {control} needs whole weights in every process: launch with ddp"


def needs_steps() -> str:
    """A clause of the sentences that refuse a training in which the mask would never change."""
    return f"needs {SHORTEST_TRAINING} steps to change its mask once"
