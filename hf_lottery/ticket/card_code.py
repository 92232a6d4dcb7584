"""The Python code of a model card: how to build the ticket's model, apply the ticket and train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_lottery.task_records import TASKS, UNKNOWN

_OUR_ARCHITECTURES = ("lenet", "conv-net", "cifar-resnet", "vgg", "small-transformer")


def loading(info: Mapping[str, Any], repo_id: str, files: Sequence[str]) -> list[str]:
    """Paragraphs: the code, and how to load the trained network if `files` has one."""
    model, imports = _base_model(info)
    if info.get("lora"):
        model = f'get_peft_model({model}, LoraConfig(**ticket.info["lora"]))'
    lines = [
        "from hf_lottery import LotteryTrainer, Ticket",
        *(["from peft import LoraConfig, get_peft_model"] if info.get("lora") else []),
        *([f"from transformers import {imports}"] if imports else []),
        "",
        f'ticket = Ticket.from_pretrained("{repo_id}")',
        f"model = ticket.apply_to({model})  # rewound weights, ready to train",
        "LotteryTrainer(model, args, train_dataset=train, ticket=ticket).train()  # stays sparse",
    ]
    parts = ["## Load it", "```python\n" + "\n".join(lines) + "\n```"]
    if _needs_local_base(info):
        parts.append(
            "`base` is the model that the ticket was found on, with its own weights; it is not a model on the Hub."
        )
    return parts + _trained_network(info, repo_id, files)


def auto_class(info: Mapping[str, Any]) -> str:
    """Name of the class of transformers that builds the ticket's model."""
    return TASKS.get(info.get("task"), UNKNOWN).auto_class


def model_type(info: Mapping[str, Any]) -> str | None:
    """The `model_type` of the ticket's model, such as `lenet` or `bert`."""
    return (info.get("config") or {}).get("model_type")


def _base_model(info: Mapping[str, Any]) -> tuple[str, str | None]:
    """The expression that builds the model before the ticket is applied, and what it imports from transformers."""
    auto = auto_class(info)
    if info.get("base_model"):
        return f'{auto}.from_pretrained("{info["base_model"]}"{_loading_options(info)})', auto
    if _needs_local_base(info):
        return "base", None
    if info.get("config"):
        return f'{auto}.from_config(AutoConfig.for_model(**ticket.info["config"]))', f"AutoConfig, {auto}"
    return "model", None


def _needs_local_base(info: Mapping[str, Any]) -> bool:
    """Whether the ticket needs weights that are neither in its own files nor in a known model of the Hub."""
    records = info.get("base_tensors", {}).values()
    return not info.get("base_model") and any(record["stored"] == "frozen" for record in records)


def _loading_options(info: Mapping[str, Any]) -> str:
    dtypes = {e["dtype"] for e in info.get("base_tensors", {}).values() if e["dtype"].startswith(("fl", "bf"))}
    options = f', revision="{info["base_revision"]}"' if info.get("base_revision") else ""
    options += f', dtype="{dtypes.pop()}"' if len(dtypes) == 1 else ""
    labels = (info.get("config") or {}).get("num_labels")
    return options + (f", num_labels={labels}" if labels is not None and "Classification" in auto_class(info) else "")


def _trained_network(info: Mapping[str, Any], repo_id: str, files: Sequence[str]) -> list[str]:
    if "adapter_config.json" in files:
        return [
            f'The trained adapter is here too: `PeftModel.from_pretrained(base, "{repo_id}")`; no hf_lottery needed.'
        ]
    if "config.json" in files:
        needs = "hf_lottery imported" if model_type(info) in _OUR_ARCHITECTURES else "no hf_lottery needed"
        return [
            f'The trained sparse network is here too: `{auto_class(info)}.from_pretrained("{repo_id}")`, {needs}; its '
            "pruned weights are exact zeros."
        ]
    return []
