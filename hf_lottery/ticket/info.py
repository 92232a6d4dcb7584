"""Where a ticket comes from: its base model and revision, the hashes of what it relies on, versions, seeds."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from peft import LoraConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.ticket.base_model import COMMIT, dtype_name, hub_id, own_tensors, tensor_sha256
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.schema import CONTROLS, HUB_ID, LORA_FIELDS, NAME, PACKAGES, RESULT_KEYS, SHA256, plain_config

# the end of a model's class name -> the task that a ticket says it is for
_TASK_OF_CLASS = {
    "ForImageClassification": "image_classification",
    "ForSequenceClassification": "text_classification",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
}


def ticket_info(
    model: nn.Module,
    mask: Mask,
    rewind: RewindPoint,
    lottery_config: LotteryConfig,
    *,
    seeds: Iterable[int] = (),
    results: Iterable[Mapping[str, Any]] = (),
    recipe: str | None = None,
    datasets: Iterable[str] = (),
    license: str | None = None,
    base_revision: str | None = None,
) -> dict[str, Any]:
    """All that a ticket says about itself beside its tensors: `Ticket(mask, rewind, info)`.

    Where θ_k is a Hub model's own (k = 0), the tensors that are bit for bit in its cached files are left to it, and
    the ticket holds only the others (a new head).

    Args:
        model: the network that was searched; its weights may be trained by now, its frozen ones may not have changed.
        mask: the ticket's mask.
        rewind: θ_k.
        lottery_config: how it was found.
        seeds: `args.seed` of each replicate.
        results: lines of results.jsonl. Their numbers, control, fingerprint and densities are kept.
        recipe: the recipe's text.
        datasets: Hub ids of the data.
        license: Hub id of the licence, such as `apache-2.0`.
        base_revision: what a Hub model was loaded at (branch, tag or commit), where it was given; else the commits in
            the cache are tried.
    """
    lines = [_plain_result(line) for line in results if line.keys() >= RESULT_KEYS]
    own = [line for line in lines if line["control"] == "ticket" and "densities" in line]
    rounds = {line["round"]: line["densities"] for line in reversed(own)}  # the first replicate's
    commit, tensors = base_tensors(model, mask, rewind, lottery_config.pruned_value, base_revision)
    class_name = type(_base(model)).__name__
    return {
        "base_model": hub_id(model),
        "base_revision": commit,
        "base_tensors": tensors,
        "task": next((task for end, task in _TASK_OF_CLASS.items() if class_name.endswith(end)), None),
        "config": _config(_base(model)),
        "lora": _lora(model),
        "pruned_becomes": lottery_config.pruned_value,
        "criterion": lottery_config.criterion_name,
        "scope": lottery_config.scope,
        "pattern": lottery_config.pattern,
        "retraining": lottery_config.retraining,
        "num_rounds": lottery_config.num_rounds,
        "pruning_rate": lottery_config.pruning_rate,
        "seeds": list(seeds),
        "versions": _versions(),
        "densities": [rounds[number] for number in sorted(rounds)],
        "results": lines,
        "recipe": None if recipe is None else recipe.replace("\r\n", "\n"),
        "datasets": [name for name in datasets if HUB_ID.fullmatch(name)],
        "license": license,
    }


def base_tensors(
    model: nn.Module, mask: Mask, rewind: RewindPoint, pruned_becomes: str, revision: str | None = None
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """(commit of the base model, name -> shape, dtype and hashes of the tensors that the ticket leaves to it).

    `frozen` ones are relied upon as they are; `base` ones are the part of θ_k that is bit for bit the base model's
    own; `derived` ones are computed when the base model is made. Quantised storage is left out: its bytes depend on
    the device that quantised it.
    """
    # PEFT keeps the head that `modules_to_save` replaced: random in every load, and of no use
    unused = tuple(
        f"{name}.original_module." for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)
    )
    frozen = {
        name: p
        for name, p in model.named_parameters()
        if name not in rewind.tensors and p.is_floating_point() and not name.startswith(unused)
    }
    found = {name: {"theta": "frozen", **_described(p)} for name, p in frozen.items()}
    repo_id = hub_id(model)
    if repo_id is None:
        return None, found
    # buffers that no checkpoint holds: the loaded base model computes them anew
    for name in dict(model.named_buffers()).keys() - model.state_dict().keys():
        value = rewind.tensors[name]
        found[name] = {"theta": "derived", "shape": list(value.shape), "dtype": dtype_name(value)}
    if isinstance(model, PeftModel):
        wanted = {entry["sha256"] for entry in found.values() if entry["theta"] == "frozen"}
        commit, own = own_tensors(repo_id, wanted, {p.dtype for p in frozen.values()}, revision)
        return commit if own == wanted else None, found
    if rewind.step > 0:
        # θ_k is the ticket's own, and where it started can only be told by whoever loaded it
        return (revision if revision and COMMIT.fullmatch(revision) else None), found
    rewound = {name: _described(value) for name, value in rewind.tensors.items() if name not in found}
    dtypes = {value.dtype for value in rewind.tensors.values() if value.is_floating_point()}
    commit, own = own_tensors(repo_id, {entry["sha256"] for entry in rewound.values()}, dtypes, revision)
    for name, entry in rewound.items():
        if entry["sha256"] not in own:
            continue
        found[name] = {"theta": "base", **entry}
        if name in mask and pruned_becomes == "zero":
            value = rewind.tensors[name].masked_fill(~mask[name].cpu(), 0)
            found[name]["sha256_rewound"] = tensor_sha256(value)
    return commit, found


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": dtype_name(tensor), "sha256": tensor_sha256(tensor)}


def _base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _config(model: nn.Module) -> dict[str, Any] | None:
    """What builds the model anew; the number of labels is a head's size, which `to_dict` hides in their names."""
    if not isinstance(model, PreTrainedModel):
        return None
    config = plain_config(model.config.to_dict())
    return config | {"num_labels": model.config.num_labels} if "Classification" in type(model).__name__ else config


def _lora(model: nn.Module) -> dict[str, Any] | None:
    """What builds the LoRA anew: `LoraConfig(**info["lora"])`. None for other models and other adapters."""
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, LoraConfig):
        return None
    config = model.active_peft_config
    found = {name: getattr(config, name) for name in LORA_FIELDS}
    found["task_type"] = found["task_type"] and str(getattr(found["task_type"], "value", found["task_type"]))
    targets = model.base_model.targeted_module_names
    for name in ("target_modules", "modules_to_save"):
        if isinstance(found[name], str):  # a regular expression, or a name such as all-linear: say what it found
            found[name] = targets
        found[name] = sorted(found[name]) if found[name] else None
    if config.layers_to_transform is not None or config.exclude_modules:
        found["target_modules"] = sorted(targets)
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = found[name] or {}
        if not all(NAME.fullmatch(key) for key in patterns):  # regular expressions likewise
            matched = {module: get_pattern_key(list(patterns), module) for module in targets}
            found[name] = {module: patterns[key] for module, key in matched.items() if key in patterns}
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES[1:]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain_result(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of results.jsonl with what a ticket may carry: numbers, and the texts that are enums or hashes."""
    plain = {}
    for key, value in line.items():
        number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        known = (
            (key == "control" and value in CONTROLS)
            or (key == "fingerprint" and isinstance(value, str) and SHA256.fullmatch(value))
            or (key == "densities" and isinstance(value, Mapping))
        )
        if known or (number and key not in ("control", "fingerprint")):
            plain[key] = value if key != "densities" else {name: list(pair) for name, pair in value.items()}
    return plain
