"""A byte tokenizer, a Llama of 2 layers and a table of instructions, all small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(chat: bool = False, **special) -> PreTrainedTokenizerFast:
    """One token a byte; <pad>, <eos> and the chat's <|end|> beside them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    special = special or {"eos_token": "<eos>", "pad_token": "<pad>"}
    result = PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=["<|end|>"], **special)
    if chat:
        result.chat_template = CHAT
    return result


def config(**changes) -> LlamaConfig:
    values = {
        "vocab_size": 260,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaConfig(**{**values, **changes})


def model(seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(**changes))


def save_model(folder: Path, chat: bool = False) -> Path:
    """A folder to load model and tokenizer from."""
    model().save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder


def save_table(folder: Path, rows: int = 40, **columns) -> Path:
    """A folder with instructions in Alpaca's columns."""
    folder.mkdir(parents=True, exist_ok=True)
    table = [
        {
            "instruction": f"add {i} and {i % 5}",
            "input": "" if i % 2 else f"note {i}",
            "output": f"the sum is {i + i % 5}",
        }
        for i in range(rows)
    ]
    for key, values in columns.items():
        for row, value in zip(table, values, strict=True):
            row[key] = value
    (folder / "train.json").write_text(json.dumps(table))
    return folder
