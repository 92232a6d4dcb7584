"""Instruction tuning of a causal language model: answers are learned, prompts and padding are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from hf_lottery.bundled import bundled_config
from hf_lottery.tasks import TaskData
from hf_lottery.tasks.building import architecture_config, build, locate
from hf_lottery.tasks.generations import GenerationCallback
from hf_lottery.tasks.hub import load_splits, require_folder
from hf_lottery.tasks.instructions import PromptTemplate, tokenise
from hf_lottery.tasks.lm_metrics import answer_sums, perplexity
from hf_lottery.tasks.pretrained import pretrained_folder
from hf_lottery.tasks.tensors import hold_out
from hf_lottery.tasks.token_batches import PaddingCollator, TokenDataset, pack

logger = logging.get_logger(__name__)


class Data(BaseModel):
    """The section `data` of a recipe: instructions in the columns of Alpaca, by default."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["causal_lm"] = "causal_lm"
    name: str | None = Field(None, description="Hub id, such as tatsu-lab/alpaca.")
    path: str | None = Field(None, description="Local folder of json, csv or parquet files to read instead.")
    train_split: str = Field("train", description="The split that training and validation are taken from.")
    test_split: str | None = Field(None, description="The split that is only measured on; unset, a part of train.")
    instruction_column: str = Field("instruction", description="Column with what is asked.")
    input_column: str | None = Field("input", description="Column with what it is asked about; null for none.")
    output_column: str = Field("output", description="Column with the answer.")
    validation_size: int = Field(200, gt=0, description="Examples held out of train to validate on.")
    test_size: int = Field(200, gt=0, description="Examples held out of train to test on, without a test_split.")
    split_seed: int = Field(0, description="Which ones are held out; not changed between replicates.")
    max_length: int = Field(128, gt=1, description="Tokens of prompt and answer; a longer answer is cut, and counted.")
    packing: bool = Field(False, description="Put several examples into a row of max_length tokens, to train on.")
    template: Literal["auto", "chat", "alpaca"] = Field(
        "auto", description="The prompt's form: the tokenizer's chat template, or Alpaca's where it has none."
    )
    tokenizer: str | None = Field(None, description="Hub id or folder; unset, the model's own.")
    generation_prompts: list[str] = Field(
        ["What is the meaning of life?"], description="Prompts to answer before and after each training."
    )
    max_new_tokens: int = Field(40, gt=0, description="Longest answer to such a prompt, in tokens.")

    @model_validator(mode="after")
    def _has_source(self):
        if self.name is None and self.path is None:
            raise ValueError("data needs a name (such as tatsu-lab/alpaca) or a path (a local folder)")
        return self


# model types whose packed examples were seen to give the logits that they give alone (with transformers 5.23;
# OPT, BLOOM, Falcon, MPT, Mamba, BioGPT and XGLM let one example look at another)
TELL_PACKED_APART = (
    *("llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox", "gpt_neo", "gptj", "codegen", "phi"),
    *("gemma", "gemma2", "gemma3_text"),
)


def load(data: Data, model_section: Any, seed: int = 0) -> TaskData:
    """Read, split and tokenise the instructions.

    Args:
        data: the section.
        model_section: the section `model`, whose tokenizer is used unless `data.tokenizer` names another.
        seed: not used: `data.split_seed` alone decides the split.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the data set cannot be had or lacks a column, or no row of a split has an answer with room for it.
    """
    tokenizer = load_tokenizer(data, model_section)
    template = PromptTemplate(tokenizer, data.template)
    splits, notes = {}, []
    for name, part in load_rows(data).items():
        examples, counts = tokenise(part, template, data.max_length)
        if not examples:
            verb = {"train": "train", "validation": "validate", "test": "test"}[name]
            raise ValueError(f"no example is left to {verb} on, of {counts}: raise data.max_length, or see the data")
        notes.append(f"{name}: {counts} ({data.max_length} tokens)")
        if counts.empty or counts.no_room or counts.truncated:
            logger.warning(f"{data.path or data.name}, {notes[-1]}")
        if data.packing and name == "train":
            examples = pack(examples, data.max_length)
        splits[name] = TokenDataset(examples, counts)
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
        notes=notes,
    )


def load_rows(data: Data) -> dict[str, list[tuple[str, str, str]]]:
    """(instruction, input, output) rows of `train`, `validation` and `test`, as they are split, without a tokenizer.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the data set cannot be had or lacks a column, or is too small to be split.
    """
    source = str(require_folder(data.path)) if data.path is not None else data.name
    tables = load_splits(source, [data.train_split] + ([data.test_split] if data.test_split else []))
    rows = {split: _rows(table, f"{source}, split {split}", data) for split, table in tables.items()}
    train = rows[data.train_split]
    if data.test_split:
        test = rows[data.test_split]
    else:
        left, chosen = hold_out(len(train), data.test_size, data.split_seed, "data.test_size")
        train, test = [train[i] for i in left], [train[i] for i in chosen]
    left, chosen = hold_out(len(train), data.validation_size, data.split_seed)
    return {"train": [train[i] for i in left], "validation": [train[i] for i in chosen], "test": test}


def build_model(
    model_section: Any, task_data: TaskData, seed: int, quantization_config: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """θ_0: the pretrained language model, or a random one of an `architecture`.

    Args:
        model_section: the section `model`.
        task_data: of `load`: its tokenizer and sequences must fit the model.
        seed: of random weights.
        quantization_config: to load the weights in 4 or 8 bits; they are then frozen, and only an adapter is trained.

    Raises:
        ValueError: the model cannot be had, its vocabulary is smaller than the tokenizer's, or its context is shorter
            than the examples.
    """
    splits = (task_data.train, task_data.validation, task_data.test)
    longest = max(len(example["input_ids"]) for split in splits for example in split)
    tokenizer = task_data.processing_class
    if model_section.name_or_path is None and quantization_config is not None:
        raise ValueError(
            "quantization goes with pretrained weights (model.name_or_path), not with the random ones of "
            "model.architecture"
        )
    config = model_config(model_section)
    _require_room(config, longest, tokenizer)  # before weights are read
    if "position_ids" in task_data.train[0] and config.model_type not in TELL_PACKED_APART:
        raise ValueError(
            "data.packing is for models that tell a row's examples apart by their positions, and a "
            f"{config.model_type} is not known to: set data.packing=false, or use one of "
            f"{', '.join(TELL_PACKED_APART)}"
        )
    model = pretrained_model(model_section, seed, quantization_config)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = pad_token(tokenizer)
    return model


def pretrained_model(
    model_section: Any, seed: int, quantization_config: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """The language model of a `model` section, without regard to data; see `build_model`."""
    if model_section.name_or_path is None:
        return build(AutoModelForCausalLM, model_section, seed)
    options = {} if quantization_config is None else {"quantization_config": quantization_config}
    return build(AutoModelForCausalLM, _as_folder(model_section), seed, **options)


def model_config(model_section: Any) -> PretrainedConfig:
    """The config of a `model` section: of its `architecture`, folder or Hub id; where the Hub cannot be reached, the
    one that comes with the package for the models that its recipes name. Weights are not read, except that a GGUF
    file, which tells its config only when it is read whole, is unpacked to disk once a process.

    Raises:
        ValueError: there is none to be had.
    """
    if model_section.name_or_path is None:
        return architecture_config(model_section.architecture, model_section.config or {}, {})
    section = _as_folder(model_section)
    options = {} if section.revision is None else {"revision": section.revision}
    try:
        return AutoConfig.from_pretrained(section.name_or_path, trust_remote_code=False, **options, **section.config)
    except (OSError, ValueError) as error:
        if (folder := bundled_config(section.name_or_path)) is not None:
            return AutoConfig.from_pretrained(folder, **section.config)
        raise ValueError(
            f"model.name_or_path is {section.name_or_path!r}, which is no folder with a model and could not be had "
            "from the Hub: check the name and the network, or give a local folder with model.name_or_path=FOLDER"
        ) from error


def has_weights(model_section: Any) -> bool:
    """Whether a model's weights are on this machine, without asking the Hub; random ones of an architecture are."""
    if model_section.name_or_path is None:
        return True
    folder = locate(model_section.name_or_path)
    if not Path(folder).is_dir():
        try:
            folder = snapshot_download(folder, revision=model_section.revision, local_files_only=True)
        except (HFValidationError, LocalEntryNotFoundError):
            return False
    return any(path.suffix in (".safetensors", ".bin", ".gguf") for path in Path(folder).iterdir())


def _as_folder(section: Any) -> Any:
    """The section with a GGUF file's conversion in its place."""
    return section.model_copy(update={"name_or_path": pretrained_folder(section), "gguf_file": None})


def load_tokenizer(data: Data, model_section: Any):
    """The tokenizer of `data.tokenizer`, or the model's own.

    Raises:
        ValueError: there is none to be had.
    """
    name = data.tokenizer or model_section.name_or_path
    if name is None:
        raise ValueError(
            "a model.architecture has no tokenizer of its own: name one with data.tokenizer, a folder or a Hub id"
        )
    own = data.tokenizer is None
    folder = locate(name)
    options = {"revision": model_section.revision, "gguf_file": model_section.gguf_file} if own else {}
    options = {key: value for key, value in options.items() if value is not None}
    where = "model.name_or_path" if own else "data.tokenizer"
    missing = (
        f"{where} is {name!r}, which is no folder with a tokenizer and could not be had from the Hub: check the "
        "name and the network, or give a local folder with data.tokenizer=FOLDER"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ValueError(missing) from error
    if not tokenizer("a word", add_special_tokens=False).input_ids:  # made from a config alone, it knows no token
        raise ValueError(missing)
    return tokenizer


def pad_token(tokenizer) -> int:
    """The token to pad with: the tokenizer's own, or else eos, or else 0. It is never attended to nor learned."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id or 0


def _require_room(config: Any, longest: int, tokenizer) -> None:
    values = config.get_text_config().to_dict()
    context = values.get("max_position_embeddings")
    if context is not None and longest > context:
        raise ValueError(
            f"an example has {longest} tokens, but the model's context is {context}: set data.max_length={context}"
        )
    if len(tokenizer) > values["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocabulary is {values['vocab_size']}: "
            "name the model's own tokenizer with data.tokenizer"
        )


def _rows(table: Any, where: str, data: Data) -> list[tuple[str, str, str]]:
    columns = {
        "instruction_column": data.instruction_column,
        "input_column": data.input_column,
        "output_column": data.output_column,
    }
    for key, column in columns.items():
        if column is not None and column not in table.column_names:
            none = ", or set it to null if there is none" if key == "input_column" else ""
            raise ValueError(
                f"{where} has the columns {', '.join(table.column_names)}, and data.{key} is '{column}': name the "
                f"right one with data.{key}{none}"
            )
    texts = [[""] * len(table) if column is None else table[column][:] for column in columns.values()]
    return [tuple("" if text is None else str(text) for text in row) for row in zip(*texts, strict=True)]
