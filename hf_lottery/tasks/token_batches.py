"""Token sequences of different lengths: the data set, packing, and batches padded to their longest sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_lottery.tasks.instructions import IGNORED, Counts

Example = dict[str, list[int]]


class TokenDataset(Dataset):
    """Examples with `input_ids` and `labels`, and if packed also `position_ids`.

    Args:
        examples: each a dict of lists of int, all of one length.
        counts: how many rows they were made of, and how many rows were cut or left out.
    """

    def __init__(self, examples: Sequence[Example], counts: Counts | None = None):
        self.examples = list(examples)
        self.counts = counts or Counts(rows=len(self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def pack(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Join whole examples, in order, to rows of at most `max_length` tokens.

    `position_ids` start again at 0 with every example. From this transformers knows where an example begins, and no
    example attends to another. Every example begins with its prompt, whose labels are IGNORED, so no token is
    predicted from the example before it.
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
    """Pads a batch to its longest row. Padding is never attended to and never in the loss.

    Args:
        pad_token_id: the token to pad with. It may be eos: labels are set by position, not by token.
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
            # Padding is one more example of its row. There is no attention mask: with one, transformers does not
            # use the positions to separate the examples.
            rows = [
                [*feature["position_ids"], *range(longest - n)] for feature, n in zip(features, lengths, strict=True)
            ]
            batch["position_ids"] = torch.tensor(rows)
        else:
            batch["attention_mask"] = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
        return batch


def _padded(features: list[Example], key: str, longest: int, value: int) -> Tensor:
    return torch.tensor([[*feature[key], *[value] * (longest - len(feature[key]))] for feature in features])
