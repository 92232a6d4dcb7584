"""Instruction tuning of a causal language model: the loss counts the answers, not the prompts or the padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_lottery.tasks import TaskData
from hf_lottery.tasks.generations import GenerationCallback
from hf_lottery.tasks.instruction_rows import load_rows
from hf_lottery.tasks.instructions import PromptTemplate, tokenise
from hf_lottery.tasks.language_models import model_config, pretrained_model
from hf_lottery.tasks.lm_metrics import answer_sums, perplexity
from hf_lottery.tasks.other_text import HubNotReached, OtherText, read_blocks
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset, pack
from hf_lottery.tasks.tokenizing import load_tokenizer, pad_token
from hf_lottery.text_blocks import Blocks

logger = logging.get_logger(__name__)


class Data(BaseModel):
    """The section `data` of a recipe. By default the columns are those of Alpaca."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["causal_lm"] = "causal_lm"
    name: str | None = Field(None, description="Hub id, such as tatsu-lab/alpaca.")
    path: str | None = Field(None, description="Local folder of json, csv or parquet files to read instead.")
    train_split: str = Field("train", description="The split that training and validation are taken from.")
    test_split: str | None = Field(None, description="The split that is only measured on; unset, a part of train.")
    instruction_column: str = Field("instruction", description="Column with the instruction.")
    input_column: str | None = Field("input", description="Column with the input to the instruction; null for none.")
    output_column: str = Field("output", description="Column with the answer.")
    validation_size: int = Field(200, gt=0, description="Examples held out of train for validation.")
    test_size: int = Field(200, gt=0, description="Examples held out of train for the test, without a test_split.")
    split_seed: int = Field(0, description="Which ones are held out; not changed between replicates.")
    max_length: int = Field(128, gt=1, description="Tokens of prompt and answer; a longer answer is cut, and counted.")
    packing: bool = Field(False, description="Put several examples into a row of max_length tokens, to train on.")
    template: Literal["auto", "chat", "alpaca"] = Field(
        "auto", description="The prompt's form: the tokenizer's chat template, or Alpaca's if it has none."
    )
    tokenizer: str | None = Field(None, description="Hub id or folder; unset, the model's own.")
    generation_prompts: list[str] = Field(
        ["What is the meaning of life?"], description="Prompts to answer before and after each training."
    )
    max_new_tokens: int = Field(40, gt=0, description="Longest answer to such a prompt, in tokens.")
    other_text: OtherText | None = Field(
        None, description="Text that the task does not hold: the rise of the loss on it is measured, as forgetting."
    )

    @model_validator(mode="after")
    def _has_source(self):
        if self.name is None and self.path is None:
            raise ValueError("data needs a name (such as tatsu-lab/alpaca) or a path (a local folder)")
        return self

    @model_validator(mode="after")
    def _other_text_is_another(self):
        text = self.other_text
        if text is not None and self._is_own(text):
            raise ValueError(
                f"data.other_text is {text.path or text.name!r}, the task's own data: name text that the task "
                "does not hold"
            )
        return self

    def _is_own(self, text: OtherText) -> bool:
        """Whether a text is the task's data itself: the same data set, or the same folder or a file in it."""
        if text.path is None or self.path is None:
            return text.path == self.path and text.name == self.name
        own, other = (Path(path).expanduser().resolve() for path in (self.path, text.path))
        return other.is_relative_to(own)


# Model types for which packed examples give the same logits as the examples alone, tested with transformers 5.23.
# In OPT, BLOOM, Falcon, MPT, Mamba, BioGPT and XGLM one example of a row attends to another.
CAN_PACK = (
    *("llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox", "gpt_neo", "gptj", "codegen", "phi"),
    *("gemma", "gemma2", "gemma3_text"),
)


def load(data: Data, model_section: Any) -> TaskData:
    """Read, split and tokenise the instructions.

    Args:
        data: the section.
        model_section: the section `model`, whose tokenizer is used unless `data.tokenizer` names another.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the data set is not found or lacks a column, or a split has no row whose answer fits.
    """
    tokenizer = load_tokenizer(data.tokenizer, model_section)
    template = PromptTemplate(tokenizer, data.template)
    splits, notes = {}, []
    for name, part in load_rows(data).items():
        examples, counts = tokenise(part, template, data.max_length)
        if not examples:
            verb = {"train": "train", "validation": "validate", "test": "test"}[name]
            raise ValueError(f"no example is left to {verb} on, of {counts}: raise data.max_length, or check the data")
        notes.append(f"{name}: {counts} ({data.max_length} tokens)")
        if counts.empty or counts.no_room or counts.truncated:
            logger.warning(f"{data.path or data.name}, {notes[-1]}")
        if data.packing and name == "train":
            examples = pack(examples, data.max_length)
        splits[name] = TokenDataset(examples, counts)
    other_text, said = _other_text(data, tokenizer)
    notes += said
    return TaskData(
        **splits,
        collator=PaddingCollator(pad_token(tokenizer)),
        compute_metrics=perplexity,
        preprocess_logits_for_metrics=answer_sums,
        processing_class=tokenizer,
        metric="perplexity",
        greater_is_better=False,
        callbacks=[GenerationCallback(template, data.generation_prompts, data.max_new_tokens)]
        if data.generation_prompts
        else [],
        other_text=other_text,
        notes=notes,
    )


def _other_text(data: Data, tokenizer: PreTrainedTokenizerBase) -> tuple[Blocks | None, list[str]]:
    """The blocks of `data.other_text`, and a note on them. Without the Hub a recipe runs all the same, and says so."""
    if data.other_text is None:
        return None, []
    try:
        blocks = read_blocks(data.other_text, tokenizer)
    except HubNotReached as error:
        logger.warning(f"forgetting is not measured: {error}")
        return None, [f"forgetting is not measured: {error}"]
    return blocks, [f"other text: {blocks.tokens:,} tokens of {blocks.name}, in blocks of {blocks.block_length}"]


def build_model(
    model_section: Any, task_data: TaskData, seed: int, quantization_config: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """The network at θ_0: the pretrained language model, or a random one of an `architecture`.

    Args:
        model_section: the section `model`.
        task_data: from `load`. Its tokenizer and its longest example must fit the model.
        seed: for random weights.
        quantization_config: loads the weights in 4 or 8 bits. They are then frozen, and only an adapter is trained.

    Raises:
        ValueError: the model is not found, its vocabulary is smaller than the tokenizer's, its context is shorter
            than the longest example, or packing is not tested for its type.
    """
    config, tokenizer = model_config(model_section), task_data.processing_class
    _require_room(config, task_data, tokenizer)  # before weights are read
    if "position_ids" in task_data.train[0] and config.model_type not in CAN_PACK:
        raise ValueError(
            "data.packing needs a model that separates the examples of a row by their positions, and this is not "
            f"tested for {config.model_type}: set data.packing=false, or use one of {', '.join(CAN_PACK)}"
        )
    model = pretrained_model(model_section, seed, quantization_config)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = pad_token(tokenizer)
    return model


def _require_room(config: PretrainedConfig, task_data: TaskData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the longest example or the tokenizer is larger than the model allows."""
    splits = (task_data.train, task_data.validation, task_data.test)
    longest = max(len(example["input_ids"]) for split in splits for example in split)
    values = config.get_text_config().to_dict()
    context = values.get("max_position_embeddings")
    if context is not None and longest > context:
        raise ValueError(
            f"an example has {longest} tokens, but the model's context is {context}: set data.max_length={context}"
        )
    text = task_data.other_text
    if context is not None and text is not None and text.block_length > context:
        raise ValueError(
            f"data.other_text.block_length is {text.block_length}, but the model's context is {context}: set it to "
            f"{context} or less"
        )
    if len(tokenizer) > values["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocabulary is {values['vocab_size']}: "
            "name the model's own tokenizer with data.tokenizer"
        )
