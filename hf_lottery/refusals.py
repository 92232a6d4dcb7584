"""What cannot be kept right is refused when the trainer is made, with what to do instead."""

from __future__ import annotations

from transformers import TrainingArguments

from hf_lottery.config import LotteryConfig

# optimizers that step inside backward, one parameter at a time, where no mask can reach
STEPS_IN_BACKWARD = {
    "lomo",
    "adalomo",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
}


def refuse_what_cannot_be_kept_right(args: TrainingArguments, config: LotteryConfig, deepspeed: bool) -> None:
    """Raise a ValueError for settings under which a pruned weight could move or a rewind would not replay."""
    optim = str(getattr(args.optim, "value", args.optim))
    if optim in STEPS_IN_BACKWARD:
        raise ValueError(f"optim is '{optim}', which steps inside backward where masks cannot reach: use adamw_torch")
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size starts training again from half-trained weights: "
            "set per_device_train_batch_size and gradient_accumulation_steps yourself"
        )
    if optim.startswith("schedule_free") and config.pruned_value == "init":
        raise ValueError(f"optim '{optim}' keeps a second copy of the weights that moves: use pruned_value zero")
    if deepspeed:
        raise ValueError(
            "DeepSpeed keeps its own copies of the weights, which the mask does not reach: use FSDP2 or DDP"
        )
