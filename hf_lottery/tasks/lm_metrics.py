"""Loss, perplexity and accuracy over answer tokens: exact sums over tokens, which do not depend on the batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from hf_lottery.tasks.instructions import IGNORED


def answer_sums(logits: Any, labels: Tensor) -> Tensor:
    """For each row: summed loss, number of correct tokens, number of tokens. The logits need not be kept.

    Args:
        logits: float [n, length, vocabulary], or a tuple with them as its first item.
        labels: int64 [n, length], IGNORED for tokens that do not count.

    Returns:
        float64 [n, 3]; float32 on devices without float64.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    # the logits at position t predict the token at t + 1
    predicted, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != IGNORED
    chosen, wanted = predicted[counted].float(), labels[counted]
    losses = torch.nn.functional.cross_entropy(chosen, wanted, reduction="none")
    values = torch.stack([losses, (chosen.argmax(-1) == wanted).float(), torch.ones_like(losses)], dim=-1)
    if logits.device.type != "mps":
        values = values.double()
    row = counted.nonzero()[:, 0]
    return torch.zeros(len(labels), 3, dtype=values.dtype, device=logits.device).index_add_(0, row, values)


def perplexity(prediction: EvalPrediction) -> dict[str, float]:
    """`loss` (mean over answer tokens, in nats), `perplexity` = e^loss and `token_accuracy`, of `answer_sums`.

    This `loss` replaces the Trainer's own, which is a mean over batches of the mean over tokens.
    """
    loss, correct, tokens = np.asarray(prediction.predictions, dtype=np.float64).reshape(-1, 3).sum(axis=0)
    mean = loss / tokens
    return {
        "loss": float(mean),
        "perplexity": math.inf if mean >= 700 else math.exp(mean),
        "token_accuracy": float(correct / tokens),
    }
