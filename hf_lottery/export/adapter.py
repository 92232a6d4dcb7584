"""A masked LoRA as a PEFT adapter that loads without hf_lottery, with all its ranks or without the pruned ones."""

from __future__ import annotations

import copy
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS_FILE
from peft.utils.other import get_pattern_key
from torch import Tensor, ones

from hf_lottery.files import write_tensors
from hf_lottery.mask import Mask
from hf_lottery.pruning.lora import live_ranks, lora_pairs

PREFIX = "base_model.model."


def save_adapter(
    folder: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    config: LoraConfig,
    base_model: str | None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors for `PeftModel.from_pretrained`.

    Args:
        folder: is created if it does not exist.
        tensors: parameter name -> value of a PEFT model, pruned weights zero; tensors of the base model are left out.
        config: the adapter's.
        base_model: Hub id or folder from which PEFT loads the base model; None: the user must name it when loading.

    Raises:
        ValueError: there is no LoRA in `tensors`, or there are several adapters.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapter = adapter_name(tensors)
    config = copy.deepcopy(config)
    config.base_model_name_or_path, config.inference_mode = base_model, True
    config.save_pretrained(str(folder))
    files = {}
    for name, value in tensors.items():
        key = _peft_key(name, adapter)
        if key is not None:
            files[key] = value.detach().cpu().contiguous()
    write_tensors(folder / WEIGHTS_FILE, files, {"format": "pt"})
    return folder


def without_pruned_ranks(
    tensors: Mapping[str, Tensor], mask: Mask, config: LoraConfig
) -> tuple[dict[str, Tensor], LoraConfig]:
    """The same adapter without its pruned ranks: fewer rows of A and columns of B.

    A rank is pruned if its whole row of A or its whole column of B is, because then it adds nothing to ΔW. Every
    module keeps its scale: alpha / r, or with rsLoRA alpha / √r. A module without any rank gets no adapter.

    Args:
        tensors: parameter name -> value, pruned weights zero.
        mask: over A and B; a tensor that it does not cover counts as kept.
        config: the adapter's.

    Returns:
        The remaining tensors, and a config with `rank_pattern` and `alpha_pattern`.

    Raises:
        ValueError: no rank is left anywhere, or the adapter has parts that ranks do not describe.
    """
    _require_only_ranks(tensors, config)
    result, ranks, alphas, gone = dict(tensors), {}, {}, []
    for (path, adapter), (a, b) in lora_pairs(tensors).items():
        module = path.removeprefix(PREFIX)
        live = _kept_ranks(tensors, mask, a, b, at_least_one=config.use_dora)
        if live.any():
            result[a], result[b] = tensors[a].cpu()[live], tensors[b].cpu()[:, live]
            ranks[module] = int(live.sum())
            alphas[module] = _alpha_of_same_scale(config, module, len(live), ranks[module])
        else:
            gone.append(module)
            result = {n: v for n, v in result.items() if not (n.startswith(f"{path}.lora_") and f".{adapter}" in n)}
    if not ranks:
        raise ValueError("no rank of the adapter is left: export an earlier round")
    return result, _with_ranks(config, ranks, alphas, gone)


def _require_only_ranks(tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    for name in tensors:
        if ".lora_embedding_" in name:
            raise ValueError(f"'{name}' is of an embedding's adapter, whose ranks cannot be removed: use --to adapter")
    if config.lora_bias:
        raise ValueError("lora_bias adds a bias to a module also where no rank is left: use --to adapter")


def _kept_ranks(tensors: Mapping[str, Tensor], mask: Mask, a: str, b: str, at_least_one: bool) -> Tensor:
    """Which ranks of a pair stay: bool [r]. `at_least_one` is for DoRA, whose magnitudes act without any rank too;
    the rank that then stays adds nothing to ΔW."""
    kept_a, kept_b = (mask[n] if n in mask else ones(tensors[n].shape, dtype=bool) for n in (a, b))
    live = live_ranks(kept_a.cpu(), kept_b.cpu())
    if at_least_one and not live.any():
        live[0] = True
    return live


def _alpha_of_same_scale(config: LoraConfig, module: str, before: int, after: int) -> float:
    """The alpha that keeps the scale of a module when `after` of its `before` ranks are left."""
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    share = after / before
    alpha *= math.sqrt(share) if config.use_rslora else share
    return int(alpha) if alpha == int(alpha) else alpha


def _with_ranks(config: LoraConfig, ranks: dict[str, int], alphas: dict[str, float], gone: list[str]) -> LoraConfig:
    """`config` with these ranks and alphas (by module), and without the modules in `gone`.

    The most common rank and alpha become the config's own; the patterns name the modules with others.
    """
    config = copy.deepcopy(config)
    config.r, config.lora_alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config.rank_pattern = {module: r for module, r in ranks.items() if r != config.r}
    config.alpha_pattern = {module: alpha for module, alpha in alphas.items() if alpha != config.lora_alpha}
    config.exclude_modules = _excluding(config.exclude_modules, gone)
    return config


def adapter_name(tensors: Mapping[str, Tensor]) -> str:
    """The name of the one adapter in `tensors`.

    Raises:
        ValueError: there is none, or there are several.
    """
    names = sorted({adapter for _, adapter in lora_pairs(tensors)})
    if len(names) != 1:
        what = f"{len(names)} adapters ({', '.join(names)}), and one is exported at a time" if names else "no LoRA"
        raise ValueError(f"there is {what}: an adapter is trained by a recipe with the section peft")
    return names[0]


def _peft_key(name: str, adapter: str) -> str | None:
    """A parameter's name in adapter_model.safetensors, where adapters have no name; None if it is not in it."""
    if f".modules_to_save.{adapter}." in name:
        return name.replace(f".modules_to_save.{adapter}.", ".")
    if name.endswith(f".lora_magnitude_vector.{adapter}.weight"):
        return name.removesuffix(f".{adapter}.weight")
    match = re.fullmatch(rf"(.+\.lora_(?:A|B|embedding_A|embedding_B))\.{re.escape(adapter)}((?:\.[^.]+)?)", name)
    return None if match is None else match[1] + match[2]


def _excluding(old: list[str] | str | None, modules: list[str]) -> list[str] | str | None:
    if not modules:
        return old
    if isinstance(old, str):
        return f"({old})|.*({'|'.join(map(re.escape, modules))})"
    return sorted({*(old or []), *modules})
