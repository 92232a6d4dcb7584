"""How many labels a batch's loss is the mean of, so that batches of any size add up to one mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

IGNORED = -100


def counted_labels(model: nn.Module) -> Callable[[Any], int]:
    """A function: batch -> how many labels its mean loss counts.

    Labels of −100 do not count, nor the first label of a row whose tokens are predicted from the ones before. Without
    `labels`, or with those that are no classes, it is the number of examples.
    """

    def count(batch: Any) -> int:
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor) and labels.dim() and not labels.is_floating_point():
            if "shift_labels" in batch:
                labels = batch["shift_labels"]
            elif predicts_next_token(model, labels):
                labels = labels[:, 1:]
            return int((labels != IGNORED).sum())
        return _examples(batch)

    return count


def predicts_next_token(model: nn.Module, labels: Tensor) -> bool:
    """Whether the loss compares the output at a position with the label after it; of a plain module, by the labels."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if labels.dim() < 2 or not isinstance(model, PreTrainedModel):
        return labels.dim() > 1
    return LOSS_MAPPING.get(model.loss_type) is ForCausalLMLoss and not model.config.is_encoder_decoder


def _examples(batch: Any) -> int:
    """The first dimension of a batch's first tensor; 1 where there is none."""
    tensors = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else [batch]
    return next((len(value) for value in tensors if isinstance(value, Tensor) and value.dim()), 1)
