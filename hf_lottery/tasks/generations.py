"""What a model says to fixed prompts, greedily, before and after it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from hf_lottery.files import write_text
from hf_lottery.layout import GENERATIONS_FILE
from hf_lottery.tasks.instructions import PromptTemplate


class GenerationCallback(TrainerCallback):
    """Writes `generations.json` into the trained network's folder: prompt, before, after.

    "Before" is the network as its training starts, under its mask; a training that is taken up again keeps what was
    written when it began.

    Args:
        template: how prompts become tokens.
        prompts: instructions.
        max_new_tokens: how long an answer may be, in tokens.
    """

    def __init__(self, template: PromptTemplate, prompts: Sequence[str], max_new_tokens: int):
        self.template, self.prompts, self.max_new_tokens = template, list(prompts), max_new_tokens

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        path = Path(args.output_dir) / GENERATIONS_FILE
        if not path.is_file():
            self._write(path, state, [{"prompt": p, "before": text} for p, text in self._answers(model)])

    def on_train_end(self, args, state, control, model=None, **kwargs):
        path = Path(args.output_dir) / GENERATIONS_FILE
        answers = self._answers(model)  # on every rank: a sharded model generates together
        if state.is_world_process_zero:
            records = json.loads(path.read_text(encoding="utf-8"))
            self._write(path, state, [{**old, "after": text} for old, (_, text) in zip(records, answers, strict=True)])

    def _answers(self, model: PreTrainedModel) -> list[tuple[str, str]]:
        return list(zip(self.prompts, generate(model, self.template, self.prompts, self.max_new_tokens), strict=True))

    @staticmethod
    def _write(path: Path, state: Any, records: list[dict[str, str]]) -> None:
        if state.is_world_process_zero:
            write_text(path, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


@torch.no_grad()
def generate(
    model: PreTrainedModel, template: PromptTemplate, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Greedy answers, one prompt at a time (so that none depends on another's padding); draws no random numbers."""
    tokenizer, was_training = template.tokenizer, model.training
    stops = {token for token in (tokenizer.eos_token_id, *template.ending[-1:]) if token is not None}
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id or 0
    model.eval()
    answers = []
    try:
        for prompt in prompts:
            ids = torch.tensor([template.prompt(prompt)], device=model.device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # some models' own settings have another, and greedy is greedy
                use_cache=True,
                eos_token_id=sorted(stops) or None,
                pad_token_id=pad,
            )
            answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    finally:
        model.train(was_training)
    return answers
