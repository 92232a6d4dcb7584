"""What cannot be kept right is refused when the trainer is made, with what to do instead."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import nn
from torch._dynamo import OptimizedModule
from transformers import Trainer, TrainingArguments

from hf_lottery.config import AUTO, LotteryConfig
from hf_lottery.distributed.deepspeed import is_zero3
from hf_lottery.pruning.criteria import DATA, criterion_of

# optimizers that step inside backward, one parameter at a time, where no mask can reach
STEPS_IN_BACKWARD = {
    "lomo",
    "adalomo",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
}

ENDS_AT_ZERO = ("linear", "cosine")

# optimizers that treat every coordinate alone: without gradient, moments and weight a coordinate stays at 0
ELEMENTWISE = ("adamw_torch", "adamw_apex", "adamw_anyprecision", "sgd", "adagrad", "rmsprop", "lion_32bit")
ELEMENTWISE_IN_DEEPSPEED = ("adam", "adamw", "adagrad", "sgd", "lion")


def refuse_offloaded(model) -> None:
    """Raise a ValueError for a model whose weights are not where, or not named as, the trainer needs them.

    Args:
        model: the trainer's first argument: a model, or whatever else a Trainer subclass makes one from.
    """
    if isinstance(model, OptimizedModule):
        raise ValueError(
            "the model is compiled already: pass the model itself, with torch_compile in TrainingArguments"
        )
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                raise ValueError(f"device_map has offloaded '{name}', so that no mask reaches it: keep all on devices")


def refuse_what_cannot_be_kept_right(args: TrainingArguments, config: LotteryConfig) -> None:
    """Raise a ValueError for settings under which a pruned weight could move or a rewind would not replay."""
    optim = _name(args.optim)
    if optim in STEPS_IN_BACKWARD:
        raise ValueError(f"optim is '{optim}', which steps inside backward where masks cannot reach: use adamw_torch")
    if config.rewind_step == AUTO:
        raise ValueError("rewind_step is auto, which `hf-lottery run` decides: give the trainer a number of steps")
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size starts training again from half-trained weights: "
            "set per_device_train_batch_size and gradient_accumulation_steps yourself"
        )
    if config.rewind_step != 0 and args.ignore_data_skip:
        raise ValueError("ignore_data_skip would replay other data than round 0 had from step k on: set it to false")
    if config.retraining == "fine_tuning":
        refuse_a_rate_of_zero(args)
    if optim.startswith("schedule_free") and config.pruned_value == "init":
        raise ValueError(f"optim '{optim}' keeps a second copy of the weights that moves: use pruned_value zero")


def refuse_a_rate_of_zero(args: TrainingArguments) -> None:
    """Raise a ValueError for a learning-rate schedule after which fine-tuning could not go on."""
    schedule = _name(args.lr_scheduler_type)
    if schedule in ENDS_AT_ZERO:
        raise ValueError(
            f"fine_tuning goes on at the last learning rate, which is 0 under lr_scheduler_type {schedule}: choose "
            "one that ends above 0, or learning_rate_rewinding"
        )


def refuse_launchers(trainer: Trainer, config: LotteryConfig) -> None:
    """Raise a ValueError for ways of spreading a model over devices in which masks could not be kept right."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP was asked for, and accelerate would silently run without it, since there are no GPUs to shard over: "
            "launch with ddp"
        )
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("FSDP1 flattens weights so that masks lose their places: set fsdp_version to 2")
    if trainer.is_fsdp_enabled:
        refuse_empty_shards(dict(trainer.model.named_parameters()), trainer.args.world_size)
    if (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and criterion_of(config.criterion).needs == DATA:
        raise ValueError(
            f"criterion {config.criterion_name} runs the whole model between trainings, which FSDP2 and DeepSpeed "
            "keep apart or on the CPU: launch with DDP, or use criterion magnitude"
        )
    if trainer.is_deepspeed_enabled:
        _refuse_in_deepspeed(trainer, config)


def refuse_empty_shards(parameters: Mapping[str, nn.Parameter], processes: int) -> None:
    """Raise a ValueError where FSDP2 leaves a process without a part of two parameters.

    accelerate tells a sharded optimizer's parameters apart by their addresses, which all empty ones share, so that a
    second training could not load the moments of step k.
    """
    empty = []
    for name, parameter in parameters.items():
        rows = parameter.shape[0] if parameter.dim() else 1
        if -(-rows // processes) * (processes - 1) >= rows:
            empty.append((rows, name))
    if len(empty) > 1:
        rows, name = min(empty)
        raise ValueError(
            f"'{name}' has {rows} rows, so that FSDP2 leaves one of {processes} processes without any, which "
            "accelerate cannot tell apart when training starts anew: launch with fewer processes, or with ddp"
        )


def _refuse_in_deepspeed(trainer: Trainer, config: LotteryConfig) -> None:
    settings = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    optim, allowed = _name(trainer.args.optim), ELEMENTWISE
    if "optimizer" in settings:
        optim, allowed = settings["optimizer"]["type"].lower(), ELEMENTWISE_IN_DEEPSPEED
    if trainer.optimizer is not None:
        raise ValueError("DeepSpeed makes its optimizer anew: set TrainingArguments.optim instead of `optimizers`")
    if not (optim in allowed or (allowed is ELEMENTWISE and optim.startswith("adamw_torch"))):
        raise ValueError(
            f"optim '{optim}' could move pruned weights inside DeepSpeed's step, where masks do not reach: "
            f"use one of {', '.join(allowed)}, or launch with FSDP2"
        )
    offload = settings.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device") == "nvme":
        raise ValueError("masks do not reach an optimizer that DeepSpeed keeps on nvme: offload it to cpu")
    if config.pruned_value == "init" and trainer.args.weight_decay != 0:
        raise ValueError("DeepSpeed decays weights that pruned_value init holds still: set weight_decay to 0")
    if any(is_zero3(parameter) for parameter in trainer.model.parameters()):
        raise ValueError(
            "ZeRO-3 has split the model while it was loaded, so that there is nothing to prune yet: "
            "set zero3_init_flag to false, or make the model before TrainingArguments"
        )


def _name(optim) -> str:
    return str(getattr(optim, "value", optim))
