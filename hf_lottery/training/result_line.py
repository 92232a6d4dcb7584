"""The line of results of a network that was just trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers import Trainer

from hf_lottery.distributed.processes import named_parameters
from hf_lottery.learning_rates import USED
from hf_lottery.pruning.lora import delta_density
from hf_lottery.results.diverged import Diverged
from hf_lottery.results.evaluations import summarise


def result_line(trainer: Trainer, seconds: float, labels: Mapping[str, Any]) -> dict[str, Any]:
    """The line of results of the network that `trainer` has trained.

    Args:
        trainer: a LotteryTrainer after its training.
        seconds: how long it took.
        labels: what the line says about it (round, control, replicate, sample). The defaults are the ticket's.
    """
    mask, state = trainer.mask, trainer.state
    counts = mask.counts()
    best_step = state.best_global_step if trainer.args.load_best_model_at_end else None
    found = summarise(state.log_history, labels.get("round", 0), best_step)
    return {
        "replicate": 0,
        "seed": trainer.args.seed,
        "control": "ticket",
        "sample": 0,
        **labels,
        USED: trainer.args.learning_rate,
        "density": mask.density(),
        "kept": sum(kept for kept, _ in counts.values()),
        "prunable": sum(total for _, total in counts.values()),
        "coverage": trainer.coverage.to_dict(),
        "start_from": trainer.lottery_config.start_from,
        "steps": state.global_step,
        **_metrics(found, trainer.watch.diverged, labels.get("metric")),
        "train_seconds": seconds,
        "last_lr_factor": trainer.replay.last_lr_factor,
        "fingerprint": mask.fingerprint(),
        "densities": counts,
        **delta_density(mask, named_parameters(trainer.model)),
    }


def _metrics(found: dict[str, Any], diverged: Diverged | None, metric: str | None) -> dict[str, Any]:
    """What a line says of the evaluations; null stands for all that a network which diverged does not have."""
    if diverged is None:  # nan and infinity are no JSON
        return {key: value if math.isfinite(value) else None for key, value in found.items()}
    names = [*found, "eval_loss", "early_stop_step", f"test_{metric or 'loss'}"]
    names += [f"early_stop_{name}" for name in names if name.startswith("test_")]
    return {**dict.fromkeys(names), "diverged": asdict(diverged)}
