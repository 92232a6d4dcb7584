"""From an instruction to tokens: the prompt, and the answer. Only the answer is in the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

IGNORED = -100  # the label of tokens that are not in the loss

# The text of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca). It ends in a newline, so that the first token of
# the answer does not depend on the end of the prompt.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


class PromptTemplate:
    """Turns prompts and answers into tokens.

    Args:
        tokenizer: a transformers tokenizer.
        kind: "chat" for the tokenizer's chat template, "alpaca" for the Alpaca template, "auto" for the chat template
            where there is one, else Alpaca.

    Raises:
        ValueError: `kind` is "chat" and the tokenizer has no chat template.
    """

    def __init__(self, tokenizer, kind: str = "auto"):
        if kind == "chat" and not tokenizer.chat_template:
            raise ValueError(
                f"data.template is 'chat', but the tokenizer {tokenizer.name_or_path!r} has no chat template: "
                "set data.template=alpaca"
            )
        self.tokenizer = tokenizer
        self.is_chat = kind == "chat" or (kind == "auto" and bool(tokenizer.chat_template))
        self.ending = self._find_ending()

    def prompt(self, instruction: str, context: str = "") -> list[int]:
        """The tokens before the answer: the input of `generate`."""
        if self.is_chat:
            return self._ids(self._chat(self._turn(instruction, context), add_generation_prompt=True))
        template = ALPACA_WITH_INPUT if context else ALPACA
        ids = list(self.tokenizer(template.format(instruction=instruction, input=context)).input_ids)
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def answer(self, output: str) -> list[int]:
        """The tokens in the loss: the answer and its ending."""
        return self._ids(output) + self.ending

    def _find_ending(self) -> list[int]:
        """The tokens that end an answer: the chat template's end of turn, or eos."""
        if self.is_chat:
            turns = [*self._turn("QUESTION", ""), {"role": "assistant", "content": "ANSWER"}]
            after = self._chat(turns).rpartition("ANSWER")[2].rstrip()
            if after:
                return self._ids(after)
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def _turn(self, instruction: str, context: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{instruction}\n\n{context}" if context else instruction}]

    def _chat(self, messages: list[dict[str, str]], **options) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


@dataclass
class Counts:
    """How many rows of a data set were left out or cut.

    Args:
        rows: all rows.
        empty: rows left out because the answer is empty.
        no_room: rows left out because the prompt alone fills the length.
        truncated: rows kept with an answer cut at the length. Such an answer has no ending.
    """

    rows: int = 0
    empty: int = 0
    no_room: int = 0
    truncated: int = 0

    def __str__(self) -> str:
        parts = [
            (self.empty, "left out for an empty answer"),
            (self.no_room, "left out because the prompt alone fills data.max_length"),
            (self.truncated, "with the answer cut at data.max_length"),
        ]
        said = ", ".join(f"{count} {what}" for count, what in parts if count)
        return f"{self.rows} rows" + (f": {said}" if said else "")


def tokenise(
    rows: Iterable[tuple[str, str, str]], template: PromptTemplate, max_length: int
) -> tuple[list[dict[str, list[int]]], Counts]:
    """(instruction, input, output) rows -> examples with `input_ids` and `labels`, in order, and how many were cut.

    Labels are the tokens of the answer, and IGNORED for the prompt. An example longer than `max_length` tokens is cut
    at the end of its answer. A row without an answer, or without room for one token of it, is left out and counted.
    """
    examples, counts = [], Counts()
    for instruction, context, output in rows:
        counts.rows += 1
        if not output.strip():
            counts.empty += 1
            continue
        prompt = template.prompt(instruction, context)
        answer = template.answer(output)
        if len(prompt) >= max_length:
            counts.no_room += 1
            continue
        counts.truncated += len(prompt) + len(answer) > max_length
        answer = answer[: max_length - len(prompt)]
        examples.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
    return examples, counts
