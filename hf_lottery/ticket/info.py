"""A ticket's `info`: its base model and revision, how it was found, versions, seeds and results."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from peft import LoraConfig, PeftModel, TaskType
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel

from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.pruning.coverage import coverage
from hf_lottery.task_records import task_of
from hf_lottery.ticket.base_model import bare, base_tensors, hub_id
from hf_lottery.ticket.model_config import plain_config
from hf_lottery.ticket.publishing import published_recipe
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.schema import HUB_ID, LORA_FIELDS, NAME, PACKAGES, RESULT_KEYS, RESULT_VALUES
from hf_lottery.ticket.validators import accepts


def ticket_info(
    model: nn.Module,
    mask: Mask,
    rewind: RewindPoint,
    lottery_config: LotteryConfig,
    *,
    seeds: Iterable[int] = (),
    results: Iterable[Mapping[str, Any]] = (),
    replicate: int = 0,
    recipe: str | None = None,
    datasets: Iterable[str] = (),
    license: str | None = None,
    base_revision: str | None = None,
) -> dict[str, Any]:
    """The facts of a ticket, for `Ticket(mask, rewind, info)`.

    If θ_k is that of a Hub model (k = 0), the ticket does not store the tensors that are bit for bit in that model's
    cached files, only the others (a new head).

    Args:
        model: the network that was searched; its weights may be trained by now, its frozen ones may not have changed.
        mask: the ticket's mask.
        rewind: θ_k.
        lottery_config: how it was found.
        seeds: `args.seed` of each replicate.
        results: lines of results.jsonl. Their numbers, control, metric, fingerprint and densities are kept; a line of
            a control that the schema does not know is left out.
        replicate: the one whose ticket it is; `densities` are of its rounds.
        recipe: the recipe's text; tokens and absolute paths in it are left out.
        datasets: Hub ids of the data.
        license: Hub id of the licence, such as `apache-2.0`.
        base_revision: branch, tag or commit that a Hub model was loaded at; None: the commits in the cache are tried.
    """
    lines = [line for line in map(_plain_result, results) if line.keys() >= RESULT_KEYS]
    commit, tensors = base_tensors(model, mask, rewind, lottery_config.pruned_value, base_revision)
    return {
        "base_model": hub_id(model),
        "base_revision": commit,
        "base_tensors": tensors,
        "task": task_of(type(bare(model)).__name__),
        "config": _config(bare(model)),
        "lora": _lora(model),
        "pruned_becomes": lottery_config.pruned_value,
        "criterion": lottery_config.criterion_name,
        "scope": lottery_config.scope,
        "pattern": lottery_config.pattern,
        "retraining": lottery_config.retraining,
        "rewind_optimizer": lottery_config.rewind_optimizer,
        "data_order": lottery_config.data_order,
        "start_from": lottery_config.start_from,
        "coverage": coverage(model, mask, lottery_config.target_modules, lottery_config.exclude_modules).to_dict(),
        "num_rounds": lottery_config.num_rounds,
        "pruning_rate": lottery_config.pruning_rate,
        "seeds": list(seeds),
        "versions": _versions(),
        "densities": _densities(lines, replicate),
        "results": lines,
        "recipe": None if recipe is None else published_recipe(recipe.replace("\r\n", "\n")),
        "datasets": [name for name in datasets if HUB_ID.fullmatch(name)],
        "license": license,
    }


def _config(model: nn.Module) -> dict[str, Any] | None:
    """What builds the model again. Adds num_labels, which `to_dict` holds only as a list of the labels' names."""
    if not isinstance(model, PreTrainedModel):
        return None
    # save_pretrained, and so each checkpoint, writes these two into the config: with or without it they are the same
    saved = {"architectures": [type(model).__name__.removeprefix("FSDP")], "dtype": str(model.dtype).split(".")[-1]}
    config = plain_config(model.config.to_dict() | saved)
    return config | {"num_labels": model.config.num_labels} if "Classification" in type(model).__name__ else config


def _lora(model: nn.Module) -> dict[str, Any] | None:
    """What builds the LoRA again: `LoraConfig(**info["lora"])`. None for other models and other adapters."""
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, LoraConfig):
        return None
    config, targets = model.active_peft_config, model.base_model.targeted_module_names
    return {name: vars(config)[name] for name in LORA_FIELDS} | {
        "task_type": config.task_type and TaskType(config.task_type).value,
        "target_modules": _target_modules(config, targets),
        "modules_to_save": sorted(config.modules_to_save) if config.modules_to_save else None,
        "rank_pattern": _by_module(config.rank_pattern, targets),
        "alpha_pattern": _by_module(config.alpha_pattern, targets),
    }


def _target_modules(config: LoraConfig, targets: list[str]) -> list[str] | None:
    """The modules with an adapter. The list in `config` is enough, unless it leaves some of its modules out."""
    listed = config.target_modules
    by_rule = isinstance(listed, str) or config.layers_to_transform is not None or config.exclude_modules
    return sorted(targets if by_rule else listed or ()) or None


def _by_module(patterns: Mapping[str, Any] | None, targets: list[str]) -> dict[str, Any]:
    """`rank_pattern` or `alpha_pattern` with the names of modules in the place of regular expressions."""
    patterns = dict(patterns or {})
    if all(NAME.fullmatch(key) for key in patterns):
        return patterns
    matched = {module: get_pattern_key(list(patterns), module) for module in targets}
    return {module: patterns[key] for module, key in matched.items() if key in patterns}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES[1:]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _densities(lines: Iterable[Mapping[str, Any]], replicate: int) -> list[dict[str, Any]]:
    """The densities per tensor of each round of a replicate's ticket, in order of rounds."""
    rounds: dict[int, dict[str, Any]] = {}
    for line in lines:
        if (line["control"], line["replicate"]) == ("ticket", replicate) and "densities" in line:
            rounds.setdefault(line["round"], line["densities"])
    return [rounds[number] for number in sorted(rounds)]


def _plain_result(line: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a line of results.jsonl that a ticket may hold."""
    plain = {key: value for key, value in line.items() if _may_be_stored(key, value)}
    if "densities" in plain:
        plain["densities"] = {name: list(pair) for name, pair in plain["densities"].items()}
    return plain


def _may_be_stored(key: str, value: Any) -> bool:
    """Numbers may be stored under any key; other values under the few keys that the schema knows."""
    if key == "densities":
        return isinstance(value, Mapping)
    if key in ("control", "fingerprint", "metric", "greater_is_better", "diverged"):
        return value is not None and accepts(RESULT_VALUES[key], value)
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
