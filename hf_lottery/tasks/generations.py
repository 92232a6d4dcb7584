"""Greedy answers of a model to fixed prompts, before and after training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from hf_lottery.files import write_text
from hf_lottery.layout import GENERATIONS_FILE
from hf_lottery.sealed import DamagedFile, readable
from hf_lottery.tasks.instructions import PromptTemplate
from hf_lottery.tasks.tokenizing import pad_token


class GenerationCallback(TrainerCallback):
    """Writes `generations.json` into the trained network's folder: prompt, before, after.

    "before" is the answer at the start of training, under the mask. A resumed training keeps the one in the file.

    Args:
        template: turns a prompt into tokens.
        prompts: instructions.
        max_new_tokens: longest answer, in tokens.
    """

    def __init__(self, template: PromptTemplate, prompts: Sequence[str], max_new_tokens: int):
        self.template, self.prompts, self.max_new_tokens = template, list(prompts), max_new_tokens

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        path = Path(args.output_dir) / GENERATIONS_FILE
        if path.exists():
            with readable(path):  # the answers before training, which a resumed training cannot give again
                if len(json.loads(path.read_text(encoding="utf-8"))) != len(self.prompts):
                    raise DamagedFile(path, f"it has not the answers to {len(self.prompts)} prompts")
        else:
            self._write(path, state, [{"prompt": p, "before": text} for p, text in self._answers(model)])

    def on_train_end(self, args, state, control, model=None, **kwargs):
        path = Path(args.output_dir) / GENERATIONS_FILE
        answers = self._answers(model)  # on every rank: the ranks of a sharded model must generate together
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
    """Greedy answers, one prompt at a time, so that no answer depends on padding. Uses no random numbers."""
    tokenizer, was_training = template.tokenizer, model.training
    stops = {token for token in (tokenizer.eos_token_id, *template.ending[-1:]) if token is not None}
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
                repetition_penalty=1.0,  # a model's own generation_config may set another
                use_cache=True,
                eos_token_id=sorted(stops) or None,
                pad_token_id=pad_token(tokenizer),
            )
            answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    finally:
        model.train(was_training)
    return answers
