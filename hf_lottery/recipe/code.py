"""Settings of other libraries through which a recipe could name code to import. A recipe is data: none is taken.

A recipe may come from a ticket of an unknown author. The metrics of `metrics` that are not in this package are code
too: they need --trust-metric-code in the command line.
"""

from __future__ import annotations

from typing import Any

from hf_lottery.recipe.yaml import Keys

_IMPORTS = "names a module that would be imported"
REFUSED = {
    ("training", "deepspeed"): "can name modules that would be imported: use --launcher deepspeed_zero2:N, or "
    "`accelerate launch --config_file FILE -m hf_lottery run …`",
    ("peft", "auto_mapping"): _IMPORTS,
    ("peft", "megatron_config"): _IMPORTS,
    ("peft", "megatron_core"): _IMPORTS,
}
# Arguments of from_pretrained that do not belong to a model's config: they name code, files and devices.
LOADER_ARGUMENTS = {
    *("trust_remote_code", "code_revision", "auto_map", "custom_generate", "kernel_config", "use_kernels"),
    *("token", "use_auth_token", "revision", "subfolder", "variant", "gguf_file", "cache_dir", "local_files_only"),
    *("force_download", "proxies", "use_safetensors", "weights_only", "state_dict", "config", "key_mapping"),
    *("quantization_config", "sparsity_config", "adapter_kwargs", "adapter_name", "device_map", "device_mesh"),
    *("max_memory", "offload_folder", "offload_buffers", "tp_plan", "tp_size", "distributed_config", "dtype"),
    *("torch_dtype", "ignore_mismatched_sizes", "output_loading_info"),
    # a second model, which would be loaded with its own settings
    *("backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone"),
}


def refused(section: str, key: str, value: Any) -> list[tuple[Keys, str]]:
    """The path and the sentence for a setting that no recipe may have; nothing for another, or for null."""
    why = REFUSED.get((section, key))
    if why is None or value is None:
        return []
    return [((section, key), f"{section}.{key} {why}; leave it out")]


def loader_argument(config: Any) -> str | None:
    """What is wrong with the first key of a model's config, at any depth, that is an argument of from_pretrained.

    Args:
        config: the section `model`'s `config`, or what is in it.

    Returns:
        A sentence without its subject, `model.config.`; None if there is no such key.
    """
    if isinstance(config, list):
        return next(filter(None, map(loader_argument, config)), None)
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        if key in LOADER_ARGUMENTS or key.startswith("_"):
            return f"{key} is no argument of a model's config, and is not passed on"
        if key.endswith("_implementation") and not str(value).replace("_", "").isalnum():
            # a name with a slash is code on the Hub
            return f"{key} is {value!r}; it must be a name such as sdpa, eager or flash_attention_2"
        if below := loader_argument(value):
            return f"{key}.{below}"
    return None
