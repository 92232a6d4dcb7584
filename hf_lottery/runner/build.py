"""A recipe's parts put together: its output folder, its data, its trainers, its experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers.trainer_callback import PrinterCallback

from hf_lottery.distributed.processes import is_main
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.files import write_text
from hf_lottery.recipe.recipe import Recipe, differences, load_recipe
from hf_lottery.runner.launch import require_same_data
from hf_lottery.runner.network import build_network
from hf_lottery.runner.progress import StepCallback, UnitProgress
from hf_lottery.tasks import DATA_NOTES_FILE, TaskData, task_module
from hf_lottery.training.trainer import LotteryTrainer
from hf_lottery.training.unsupported import refuse_schedule_ending_at_zero

RECIPE_FILE = "recipe.yaml"
COMMAND_FILE = "command"  # what was typed


def claim_output_folder(recipe: Recipe) -> Path:
    """Write recipe.yaml and command into a new output folder; refuse one that another recipe has trained into."""
    root = Path(recipe.training["output_dir"])
    written = root / RECIPE_FILE
    if written.is_file():
        changed = differences(load_recipe(str(written)), recipe)
        if changed and any(path.name != ".lock" for path in root.glob("replicate-*/**/*") if path.is_file()):
            key, (old, new) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ValueError(
                f"{root} holds results of another recipe: {key} was {old!r} and is now {new!r}{more}. "
                "Set training.output_dir to another folder, or go back to the recipe that it was made with."
            )
        if not changed:
            return root
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / COMMAND_FILE, recipe.command() + "\n")
    write_text(written, recipe.to_yaml())
    return root


def make_experiment(recipe: Recipe, root: Path, progress: UnitProgress | None = None) -> Experiment:
    """The recipe's experiment; data are read once, at the first network that is trained."""
    config, data = recipe.lottery_config(), _Once(lambda: _noted(load_data(recipe), root))
    arguments = recipe.training_arguments()
    if any(control.name == "no_rewinding" for control in recipe.experiment.controls):
        refuse_schedule_ending_at_zero(arguments)

    def make_trainer(seed: int, folder: Path) -> LotteryTrainer:
        return build_trainer(recipe, data(), seed, folder, progress)

    return Experiment(
        root,
        config.num_rounds,
        recipe.experiment.replicates,
        recipe.experiment.controls,
        arguments.seed,
        make_trainer,
    )


def _noted(data: TaskData, root: Path) -> TaskData:
    if data.notes and is_main():
        write_text(root / DATA_NOTES_FILE, "\n".join(data.notes) + "\n")
    return data


def load_data(recipe: Recipe) -> TaskData:
    """The recipe's data, read by its task, with its metrics; a language model that cannot fit is refused before."""
    if recipe.data.task == "causal_lm":
        from hf_lottery.runner.memory import network_size, require_fits

        require_fits(recipe, network_size(recipe))
    data = task_module(recipe.data.task).load(recipe.data, recipe.model)
    if recipe.metrics is not None:
        from hf_lottery.metrics import with_metrics

        data = with_metrics(data, recipe.metrics)
    require_same_data(data)
    return data


def build_trainer(
    recipe: Recipe, data: TaskData, seed: int, folder: Path, progress: UnitProgress | None = None
) -> LotteryTrainer:
    """A fresh trainer for one network: model and adapter drawn under `seed`, output in `folder`."""
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
        recipe.training_arguments(output_dir=str(folder), seed=seed, **defaults),
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset={"validation": data.validation, "test": data.test},
        processing_class=data.processing_class,
        compute_metrics=data.compute_metrics,
        preprocess_logits_for_metrics=data.preprocess_logits_for_metrics,
        callbacks=[*data.callbacks, *([StepCallback(progress)] if progress is not None else [])],
        lottery_config=recipe.lottery_config(),
    )
    trainer.remove_callback(PrinterCallback)  # the records are in trainer_state.json
    return trainer


class _Once:
    """A function that is called at most once."""

    def __init__(self, function: Callable):
        self._function, self._value = function, None

    def __call__(self):
        if self._value is None:
            self._value = self._function()
        return self._value
