"""Which values settings take: one rule for every number and text, and the settings that have a range of their own.

transformers and peft check few of their arguments: they accept a negative `eval_steps` or a dropout of −3, and
training fails or diverges later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_lottery.printable import shown
from hf_lottery.recipe.yaml import Keys

LARGEST = 10**12
LARGEST_SEED = 2**32 - 1  # of numpy
_64_BITS = 1 << 63
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both included, except where `above` or `below` leaves them out."""

    least: float = 0
    most: float = LARGEST
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        high_enough = number > self.least if self.above else number >= self.least
        return high_enough and (number < self.most if self.below else number <= self.most)

    def wanted(self, number: float) -> str:
        """What a number outside must be, for an error message."""
        return f"{self.most:,} or less" if number > self.most == LARGEST else str(self)

    def __str__(self) -> str:
        low = f"above {self.least:,}" if self.above else f"{self.least:,} or more"
        if self.most == LARGEST:
            return low
        return f"{low} and below {self.most:,}" if self.below else f"{low}, up to {self.most:,}"


_NUMBER = Range()
_SIGNED = Range(-LARGEST)  # below a setting that is itself a mapping, such as lr_scheduler_kwargs
_COUNT, _POSITIVE, _SEED = Range(1), Range(above=True), Range(most=LARGEST_SEED)
_SHARE, _BELOW_ONE, _RANK = Range(most=1), Range(most=1, below=True), Range(1, 65536)

RANGES = {
    "training": {
        "max_steps": Range(-1),  # −1: as many as num_train_epochs are
        "local_rank": Range(-1),
        "seed": _SEED,
        "data_seed": _SEED,
        "adam_beta1": _BELOW_ONE,
        "adam_beta2": _BELOW_ONE,
        "label_smoothing_factor": _SHARE,
        "dataloader_num_workers": Range(most=1024),
        **dict.fromkeys(("num_train_epochs", "logging_steps", "eval_steps", "save_steps"), _POSITIVE),
        **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _COUNT),
        **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps"), _COUNT),
        **dict.fromkeys(("torch_empty_cache_steps", "dataloader_prefetch_factor"), _COUNT),
        **dict.fromkeys(("ddp_timeout", "ddp_bucket_cap_mb"), _COUNT),
    },
    "peft": {
        "r": _RANK,
        "rank_pattern": _RANK,
        "lora_alpha": _POSITIVE,
        "alpha_pattern": _POSITIVE,
        "lora_dropout": _BELOW_ONE,
        "qalora_group_size": _COUNT,
    },
    "data": {
        "std": _POSITIVE,
        "split_seed": _SEED,
        "image_size": Range(1, 4096),
        "crop_padding": Range(0, 4096),
        "max_length": Range(1, 1 << 20),
        "max_new_tokens": Range(1, 1 << 20),
        "tokenizer": Range(0, 1 << 20),  # its vocab_size and min_frequency
        "other_text": Range(1, 1 << 30),  # its tokens and block_length
    },
}


def out_of_range(section: str, key: str, value: Any) -> list[tuple[Keys, str]]:
    """(path, sentence) for each number of a setting's value that the setting does not take."""
    own = RANGES.get(section, {}).get(key)
    # a negative number may be right in what another class defines, such as lr_scheduler_kwargs or a model's config
    allowed = own or (_SIGNED if isinstance(value, dict) else _NUMBER)
    return [
        (path, f"{'.'.join(path)} is {shown(number)}; it must be {allowed.wanted(number)}")
        for path, number in leaves(value, (section, key))
        if isinstance(number, (int, float)) and not isinstance(number, bool) and number not in allowed
    ]


def impossible(value: Any) -> str | None:
    """Why no setting takes this number or text: it is infinite, too large for 64 bits, or has control characters."""
    if isinstance(value, str) and _CONTROL.search(value):
        return f"is {shown(value)}, with a character that is not printable; no setting takes it"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {shown(value)}; it must be a finite number"
    if isinstance(value, int) and not -_64_BITS <= value < _64_BITS:
        return f"is {value:.3e}; it must be a number of at most 64 bits" if abs(value) < 10**300 else "is too large"
    return None


def leaves(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The path and value of everything in nested lists and dicts that is neither; and each dict's keys, as values."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield (*path, key), key
            yield from leaves(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from leaves(below, (*path, str(index)))
    else:
        yield path, value
