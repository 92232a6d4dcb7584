"""A masked LoRA as a PEFT adapter that loads without hf_lottery, whole or without the ranks that are pruned."""

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
        folder: made if need be.
        tensors: parameter name -> value of a PEFT model, pruned weights zero; what is not the adapter's is left out.
        config: the adapter's.
        base_model: Hub id or folder that PEFT is to load the base from; None: not said.

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
    """The same adapter without the ranks that the mask prunes wholly: fewer rows of A and columns of B.

    A rank goes if its row of A or its column of B is pruned, for then it adds nothing to ΔW. Every module keeps its
    scale: alpha / r, or with rsLoRA alpha / √r. A module without ranks is excluded.

    Args:
        tensors: parameter name -> value, pruned weights zero.
        mask: over A and B; where it covers only one of a pair, the other counts as kept.
        config: the adapter's.

    Returns:
        The remaining tensors, and a config with `rank_pattern` and `alpha_pattern`.

    Raises:
        ValueError: no rank is left anywhere, or the adapter has parts that ranks do not describe.
    """
    for name in tensors:
        if ".lora_embedding_" in name:
            raise ValueError(f"'{name}' is of an embedding's adapter, which cannot be cut: export --to adapter")
    if config.lora_bias:
        raise ValueError("lora_bias adds a bias to a module also where no rank is left: export --to adapter")
    result, ranks, alphas, gone = dict(tensors), {}, {}, []
    for (path, adapter), (a, b) in lora_pairs(tensors).items():
        module = path.removeprefix(PREFIX)
        kept_a, kept_b = (mask[n] if n in mask else ones(tensors[n].shape, dtype=bool) for n in (a, b))
        live = live_ranks(kept_a.cpu(), kept_b.cpu())
        if config.use_dora and not live.any():
            live[0] = True  # DoRA's magnitudes act without any rank; the one that stays adds nothing
        r, left = len(live), int(live.sum())
        if left == 0:
            gone.append(module)
            for name in [n for n in result if n.startswith(path + ".lora_") and f".{adapter}" in n]:
                del result[name]
            continue
        result[a], result[b] = tensors[a].cpu()[live], tensors[b].cpu()[:, live]
        pattern = get_pattern_key(list(config.alpha_pattern or {}), module)
        alpha = (config.alpha_pattern or {}).get(pattern, config.lora_alpha)
        ranks[module] = left
        alphas[module] = _whole(alpha * (math.sqrt(left / r) if config.use_rslora else left / r))
    if not ranks:
        raise ValueError("no rank of the adapter is left: export an earlier round")
    config = copy.deepcopy(config)
    # the commonest rank and alpha are the config's own, the patterns name the modules that differ
    config.r, config.lora_alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config.rank_pattern = {module: r for module, r in ranks.items() if r != config.r}
    config.alpha_pattern = {module: alpha for module, alpha in alphas.items() if alpha != config.lora_alpha}
    config.exclude_modules = _excluding(config.exclude_modules, gone)
    return result, config


def adapter_name(tensors: Mapping[str, Tensor]) -> str:
    """The name of the one adapter in `tensors`.

    Raises:
        ValueError: there is none, or there are several.
    """
    names = sorted({adapter for _, adapter in lora_pairs(tensors)})
    if len(names) != 1:
        what = f"{len(names)} adapters ({', '.join(names)}), and one is exported at a time" if names else "no LoRA"
        raise ValueError(f"there is {what}: an adapter comes of a run with the section peft")
    return names[0]


def _peft_key(name: str, adapter: str) -> str | None:
    """A parameter's name in adapter_model.safetensors, which says no adapter's name; None for what is not in there."""
    if f".modules_to_save.{adapter}." in name:
        return name.replace(f".modules_to_save.{adapter}.", ".")
    if name.endswith(f".lora_magnitude_vector.{adapter}.weight"):
        return name.removesuffix(f".{adapter}.weight")
    match = re.fullmatch(rf"(.+\.lora_(?:A|B|embedding_A|embedding_B))\.{re.escape(adapter)}((?:\.[^.]+)?)", name)
    return None if match is None else match[1] + match[2]


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _excluding(old: list[str] | str | None, modules: list[str]) -> list[str] | str | None:
    if not modules:
        return old
    if isinstance(old, str):
        return f"({old})|.*({'|'.join(map(re.escape, modules))})"
    return sorted({*(old or []), *modules})
