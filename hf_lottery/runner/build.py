"""The parts of a recipe put together: its data, its trainers, its experiment."""

from __future__ import annotations

import functools
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_lottery.distributed.processes import is_main
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import DATA_NOTES_FILE
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.runner.launch import require_same_data
from hf_lottery.runner.network import build_network
from hf_lottery.sealed import write_sealed_text
from hf_lottery.tasks import TaskData, task_module
from hf_lottery.training.dynamic_sparsity import refuse_sharding
from hf_lottery.training.mask_schedule import DYNAMIC
from hf_lottery.training.trainer import LotteryTrainer
from hf_lottery.training.unsupported import refuse_schedule_ending_at_zero


def make_experiment(recipe: Recipe, root: Path, callbacks: Sequence[TrainerCallback] = ()) -> Experiment:
    """The recipe's experiment; data are read once, at the first network that is trained.

    Args:
        recipe: the recipe.
        root: its output folder.
        callbacks: of every trainer.
    """
    config, arguments = recipe.lottery_config(), recipe.training_arguments()
    if any(control.name == "no_rewinding" for control in recipe.experiment.controls):
        refuse_schedule_ending_at_zero(arguments)
    for control in recipe.experiment.controls:
        if control.name in DYNAMIC:
            refuse_sharding(control.name)

    @functools.cache
    def data() -> TaskData:
        found = load_data(recipe)
        if found.notes and is_main():
            write_sealed_text(root / DATA_NOTES_FILE, "\n".join(found.notes) + "\n")
        return found

    def make_trainer(seed: int, folder: Path, **changes: float) -> LotteryTrainer:
        return build_trainer(recipe, data(), seed, folder, callbacks, **changes)

    def labels() -> dict[str, Any]:
        looks = len(recipe.experiment.looks())
        counted = {"looks": looks} if looks > 1 else {}
        counted |= {"test_examples": len(data().test)} if isinstance(data().test, Sized) else {}
        return {"metric": data().metric, "greater_is_better": data().greater_is_better, **counted}

    return Experiment(
        root,
        config.num_rounds,
        recipe.experiment.looks()[0],
        recipe.experiment.controls,
        arguments.seed,
        make_trainer,
        labels,
        recipe.learning_rates(),
    )


def load_data(recipe: Recipe) -> TaskData:
    """The recipe's data, read by its task, with its metrics; a model that does not fit is refused first."""
    from hf_lottery.runner.memory import require_memory

    require_memory(recipe)
    data = task_module(recipe.data.task).load(recipe.data, recipe.model)
    if recipe.metrics is not None:
        from hf_lottery.metrics import with_metrics

        data = with_metrics(data, recipe.metrics, recipe.trusts_metric_code)
    require_same_data(data)
    return data


def build_trainer(
    recipe: Recipe,
    data: TaskData,
    seed: int,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: float,
) -> LotteryTrainer:
    """A fresh trainer for one network: model and adapter drawn under `seed`, output in `folder`.

    `changes` are settings of its own in the section `training`: its learning_rate.
    """
    model = build_network(recipe, data, seed)
    defaults = {
        "remove_unused_columns": False,  # our datasets give what the model takes, a batch at a time
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": "none",
    }
    defaults = {key: value for key, value in defaults.items() if key not in recipe.training}
    trainer = LotteryTrainer(
        model,
        recipe.training_arguments(output_dir=str(folder), seed=seed, **defaults, **changes),
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset={"validation": data.validation, "test": data.test},
        processing_class=data.processing_class,
        compute_metrics=data.compute_metrics,
        preprocess_logits_for_metrics=data.preprocess_logits_for_metrics,
        callbacks=[*data.callbacks, *callbacks],
        lottery_config=recipe.lottery_config(),
    )
    trainer.other_text = data.other_text
    trainer.remove_callback(PrinterCallback)  # the records are in trainer_state.json
    return trainer
