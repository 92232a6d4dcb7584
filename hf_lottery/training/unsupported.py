"""Refuses settings under which pruned weights could change or a rewind would not be exact; says what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule
from transformers import Trainer, TrainingArguments

from hf_lottery.config import AUTO, LotteryConfig
from hf_lottery.distributed.deepspeed import is_zero3
from hf_lottery.pruning.criteria import DATA, criterion_of
from hf_lottery.pruning.step import refuse_sharded
from hf_lottery.ticket.ticket import Ticket

# optimizers that step inside backward, one parameter at a time, where no mask is applied
STEPS_IN_BACKWARD = {
    "lomo",
    "adalomo",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
}

ENDS_AT_ZERO = ("linear", "cosine")

# optimizers that update each coordinate by itself: one whose gradient, moments and weight are 0 stays at 0
ELEMENTWISE = ("adamw_torch", "adamw_apex", "adamw_anyprecision", "sgd", "adagrad", "rmsprop", "lion_32bit")
ELEMENTWISE_IN_DEEPSPEED = ("adam", "adamw", "adagrad", "sgd", "lion")


def refuse_compiled_or_offloaded(model) -> None:
    """Raise a ValueError for a compiled model (its weights have other names) or an offloaded one (masks miss them).

    Args:
        model: the trainer's first argument: a model, or what a Trainer subclass makes one from, which is not checked.
    """
    if isinstance(model, OptimizedModule):
        raise ValueError(
            "the model is compiled already: pass the model itself, with torch_compile in TrainingArguments"
        )
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                raise ValueError(
                    f"device_map has offloaded '{name}', where no mask can be applied: keep all on devices"
                )


def refuse_other_pruned_value(config: LotteryConfig, ticket: Ticket | None) -> None:
    """Raise a ValueError for a config and a ticket whose pruned weights have different values."""
    if ticket is not None and config.pruned_value != ticket.pruned_becomes:
        raise ValueError(
            f"lottery_config has pruned_value {config.pruned_value!r}, and the ticket's pruned weights "
            f"are {ticket.pruned_becomes!r}: give LotteryConfig(pruned_value={ticket.pruned_becomes!r})"
        )


def refuse_unsupported_arguments(args: TrainingArguments, config: LotteryConfig) -> None:
    """Raise a ValueError for arguments under which a pruned weight could change or a replay would not be exact."""
    optim = _name(args.optim)
    if optim in STEPS_IN_BACKWARD:
        raise ValueError(f"optim is '{optim}', which steps inside backward, where no mask is applied: use adamw_torch")
    if config.rewind_step == AUTO:
        raise ValueError("rewind_step is auto, which `hf-lottery run` decides: give the trainer a number of steps")
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size starts training again from half-trained weights: "
            "set per_device_train_batch_size and gradient_accumulation_steps yourself"
        )
    if config.rewind_step != 0 and args.ignore_data_skip:
        raise ValueError("with ignore_data_skip a replay from step k reads other data than round 0: set it to false")
    if config.retraining == "fine_tuning":
        refuse_schedule_ending_at_zero(args)
    if optim.startswith("schedule_free") and config.pruned_value == "init":
        raise ValueError(f"optim '{optim}' keeps its own copy of the weights and changes it: use pruned_value zero")


def refuse_schedule_ending_at_zero(args: TrainingArguments) -> None:
    """Raise a ValueError for a learning-rate schedule that ends at 0: fine-tuning uses its last learning rate."""
    schedule = _name(args.lr_scheduler_type)
    if schedule in ENDS_AT_ZERO:
        raise ValueError(
            f"fine_tuning uses the last learning rate, which is 0 under lr_scheduler_type {schedule}: choose "
            "one that ends above 0, or learning_rate_rewinding"
        )


def refuse_unsupported_launcher(trainer: Trainer, config: LotteryConfig) -> None:
    """Raise a ValueError for a launcher (FSDP, DeepSpeed) or its settings with which masks do not work."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP was asked for, and accelerate would silently run without it, since there are no GPUs to shard over: "
            "launch with ddp"
        )
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("FSDP1 flattens weights, so that masks do not fit them: set fsdp_version to 2")
    if trainer.is_fsdp_enabled:
        refuse_empty_shards(dict(trainer.model.named_parameters()), trainer.args.world_size)
    if (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and criterion_of(config.criterion).needs == DATA:
        raise ValueError(
            f"criterion {config.criterion_name} runs the whole model between trainings, when FSDP2 and DeepSpeed hold "
            "it sharded or on the CPU: launch with DDP, or use criterion magnitude"
        )
    if trainer.is_fsdp_enabled:
        refuse_sharded(config)
    if trainer.is_deepspeed_enabled:
        _refuse_in_deepspeed(trainer, config)


def refuse_empty_shards(parameters: Mapping[str, nn.Parameter], processes: int) -> None:
    """Raise a ValueError if FSDP2 gives a process an empty part of two or more parameters.

    accelerate identifies the parameters of a sharded optimizer by their addresses. All empty parts have the same one,
    so that a second training could not load the moments of step k.

    Args:
        parameters: name -> parameter, not sharded yet.
        processes: how many there are.
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
            "accelerate cannot identify when training starts again: launch with fewer processes, or with ddp"
        )


def _refuse_in_deepspeed(trainer: Trainer, config: LotteryConfig) -> None:
    settings = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    if config.rewind_optimizer == "fresh" and config.rewind_step != 0:
        raise ValueError(
            "rewind_optimizer is fresh, and DeepSpeed loads optimizer and schedule of step k together: use "
            "rewind_optimizer state, rewind_step 0, or launch with ddp or fsdp2"
        )
    if trainer.optimizer is not None:
        raise ValueError("DeepSpeed makes its own optimizer: set TrainingArguments.optim instead of `optimizers`")
    _refuse_optim_in_deepspeed(trainer.args, settings)
    offload = settings.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device") == "nvme":
        raise ValueError("masks cannot be applied to an optimizer that DeepSpeed keeps on nvme: offload it to cpu")
    if config.pruned_value == "init" and trainer.args.weight_decay != 0:
        raise ValueError("DeepSpeed decays weights that pruned_value init keeps constant: set weight_decay to 0")
    if any(is_zero3(parameter) for parameter in trainer.model.parameters()):
        raise ValueError(
            "ZeRO-3 has sharded the model while it was loaded, so that no weight is whole: "
            "set zero3_init_flag to false, or make the model before TrainingArguments"
        )


def _refuse_optim_in_deepspeed(args: TrainingArguments, settings: Mapping[str, Any]) -> None:
    optim, allowed = _name(args.optim), ELEMENTWISE
    if "optimizer" in settings:
        optim, allowed = settings["optimizer"]["type"].lower(), ELEMENTWISE_IN_DEEPSPEED
    if not (optim in allowed or (allowed is ELEMENTWISE and optim.startswith("adamw_torch"))):
        raise ValueError(
            f"optim '{optim}' could change pruned weights inside DeepSpeed's step, where no mask is applied: "
            f"use one of {', '.join(allowed)}, or launch with FSDP2"
        )


def _name(optim) -> str:
    return str(getattr(optim, "value", optim))
