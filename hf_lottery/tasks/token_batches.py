"""Token sequences of different lengths: the data set, packing, and batches padded to their longest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_lottery.tasks.instructions import IGNORED, Counts

Example = dict[str, list[int]]


class TokenDataset(Dataset):
    """Examples of `input_ids` and `labels` (packed ones also `position_ids`).

    Args:
        examples: each a dict of equally long lists.
        counts: what became of the rows that they were made of.
    """

    def __init__(self, examples: Sequence[Example], counts: Counts | None = None):
        self.examples = list(examples)
        self.counts = counts or Counts(rows=len(self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def answer_tokens(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORED for example in self.examples for label in example["labels"])


def pack(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Put whole examples one behind the other, in order, into rows of at most `max_length` tokens.

    `position_ids` start at 0 with every example: from that transformers tells the examples of a row apart, so that
    none attends to another. Every example begins with its prompt, so no label looks across a border either.
    """
    rows: list[Example] = []
    for example in examples:
        length = len(example["input_ids"])
        if not rows or len(rows[-1]["input_ids"]) + length > max_length:
            rows.append({"input_ids": [], "labels": [], "position_ids": []})
        rows[-1]["input_ids"] += example["input_ids"]
        rows[-1]["labels"] += example["labels"]
        rows[-1]["position_ids"] += range(length)
    return rows


class PaddingCollator:
    """Pads a batch to its longest row. Padding is never attended to and never in the loss, whichever token it is.

    Args:
        pad_token_id: the token to pad with; eos will do, for labels are set by place and not by token.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, features: list[Example]) -> dict[str, Tensor]:
        lengths = [len(feature["input_ids"]) for feature in features]
        longest = max(lengths)
        batch = {
            "input_ids": _padded(features, "input_ids", longest, self.pad_token_id),
            "labels": _padded(features, "labels", longest, IGNORED),
        }
        if "position_ids" in features[0]:
            # Padding is one more example of its row. No attention mask: beside one, transformers does not look for
            # borders in the positions.
            rows = [
                [*feature["position_ids"], *range(longest - n)] for feature, n in zip(features, lengths, strict=True)
            ]
            batch["position_ids"] = torch.tensor(rows)
        else:
            batch["attention_mask"] = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
        return batch


def _padded(features: list[Example], key: str, longest: int, value: int) -> Tensor:
    return torch.tensor([[*feature[key], *[value] * (longest - len(feature[key]))] for feature in features])
