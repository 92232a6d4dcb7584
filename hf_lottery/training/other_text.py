"""Forgetting: the loss on text that the task does not hold, of the pretrained model and of each trained network.

Source: PEFT's method_comparison, whose tables show the rise of the loss on Wikipedia text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback

from hf_lottery.distributed.processes import gathered, rank, world_size
from hf_lottery.results.forgetting import AFTER, BEFORE, TEXT, TOKENS
from hf_lottery.text_blocks import Blocks


class OtherTextLoss(TrainerCallback):
    """Measures the loss on the trainer's `other_text` in one training: at its end, and in round 0 at its start too.

    What was measured at the start is in the training's log, and so in its checkpoints.

    Args:
        trainer: a LotteryTrainer; its `other_text` has the blocks.
        before: the pretrained model's loss, as round 0 has measured it; None in round 0 itself.
    """

    def __init__(self, trainer: Trainer, before: float | None = None):
        self.trainer, self.before = trainer, before
        self.after: float | None = None

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """In the block, a training is measured. Nothing is if the trainer has no text, or round 0 had none."""
        self.after = None
        wanted = self.trainer.other_text is not None and (self._is_dense() or self.before is not None)
        if wanted:
            self.trainer.add_callback(self)
        try:
            yield
        finally:
            if wanted:
                self.trainer.remove_callback(self)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self._is_dense():
            return
        if state.global_step == 0:
            with _pretrained(model):
                loss = loss_on(model, self.trainer.other_text)
            state.log_history.append({BEFORE: loss, "step": 0, "round": 0})
        self.before = next((record[BEFORE] for record in state.log_history if BEFORE in record), None)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.trainer.watch.diverged is None:
            self.after = loss_on(model, self.trainer.other_text)

    def fields(self) -> dict[str, Any]:
        """What the network's line of results says of it; null for a loss that is not finite, or of a diverged network.

        Empty if nothing was measured.
        """
        text = self.trainer.other_text
        if text is None or self.before is None:
            return {}
        after = self.after if self.trainer.watch.diverged is None else None
        return {BEFORE: self.before, AFTER: after, TEXT: text.name, TOKENS: text.tokens}

    def _is_dense(self) -> bool:
        return self.trainer.current_round == 0


@torch.no_grad()
def loss_on(model: nn.Module, text: Blocks) -> float | None:
    """Mean cross-entropy, in nats, of the tokens of each block but its first. None if it is not finite.

    A block at a time, so that no value depends on a batch, with log-probabilities in float32. The blocks are shared
    out to the processes, and their losses are added in order: the same bits for any number of processes. All of them
    must call this together; where they hold a sharded model, they also compute together.

    Args:
        model: a causal language model; without dropout while this runs.
        text: the blocks.
    """
    was_training, blocks, losses = model.training, text.ids, {}
    model.eval()
    try:
        for first in range(0, len(blocks), world_size()):
            index = min(first + rank(), len(blocks) - 1)  # past the end, the last once more: no process may be missing
            losses[index] = _loss_of_block(model, blocks[index])
    finally:
        _reshard(model)
        model.train(was_training)
    together = {index: loss for part in gathered(losses) for index, loss in part.items()}
    mean = math.fsum(together.values()) / (len(blocks) * (text.block_length - 1))
    return mean if math.isfinite(mean) else None


def _loss_of_block(model: nn.Module, block: list[int]) -> float:
    """The sum over the tokens of a block."""
    ids = torch.tensor([block], device=model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
    losses = nn.functional.cross_entropy(logits.float(), ids[0, 1:].to(logits.device), reduction="none")
    return float(losses.cpu().double().sum())


def _pretrained(model: nn.Module):
    """In the block, the model is the one that was loaded, without its adapter."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def _reshard(model: nn.Module) -> None:
    """FSDP2 shards the parameters again in the backward pass, which there was none of."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
