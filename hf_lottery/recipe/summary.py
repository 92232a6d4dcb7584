"""What a recipe would do, in a few lines. No data are read and no model is built."""

from __future__ import annotations

import os

from hf_lottery.config import LotteryConfig
from hf_lottery.layout import CHAINS
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.recipe.sections import Control, Experiment, number_of_networks


def summary(recipe: Recipe) -> str:
    """Model, data, training, rounds with their planned densities, controls and the number of networks.

    Raises:
        RecipeError: TrainingArguments refuses the section `training`.
        FileNotFoundError: `data.path` is not there.
    """
    path = recipe.data.path
    if path is not None and not os.path.exists(os.path.expanduser(path)):
        raise FileNotFoundError(
            f"data.path is '{path}', and there is no such file or folder; give it by data.path=FOLDER"
        )
    lottery, arguments = recipe.lottery_config(), recipe.training_arguments()
    length = f"{arguments.max_steps} steps" if arguments.max_steps > 0 else f"{arguments.num_train_epochs:g} epochs"
    experiment = recipe.experiment
    fewest, most = (
        number_of_networks(lottery.num_rounds, count, experiment.controls)
        for count in (experiment.looks()[0], experiment.looks()[-1])
    )
    networks = f"{fewest} to {most}" if fewest != most else str(most)
    rows = {
        "recipe": f"{recipe.name} is valid" + (f" ({recipe.description})" if recipe.description else ""),
        "model": _model(recipe),
        "data": f"{recipe.data.task}: {path or recipe.data.name}",
        "metrics": ", ".join(recipe.metrics or []),
        "training": f"{length} of batch {arguments.per_device_train_batch_size} a device, "
        f"{arguments.optim.value} at {arguments.learning_rate:g}",
        "rounds": f"0 to {lottery.num_rounds}, {lottery.criterion} pruning by {lottery.scope}, {lottery.retraining}"
        + "".join(
            f", {name} fresh" for name in ("rewind_optimizer", "data_order") if lottery.to_dict()[name] == "fresh"
        ),
        "densities": _densities(lottery),
        "controls": "; ".join(map(_control, recipe.experiment.controls)) or "none",
        "networks": f"{networks} to train, over {_replicates(experiment)}",
        "output": recipe.training["output_dir"],
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items() if text)


def _replicates(experiment: Experiment) -> str:
    looks = experiment.looks()
    count = f"{looks[0]} to {looks[-1]}" if len(looks) > 1 else str(looks[0])
    until = ", until a winning ticket is shown or ruled out" if len(looks) > 1 else ""
    return f"{count} replicate{'s' if looks[-1] > 1 else ''}{until}"


def _model(recipe: Recipe) -> str:
    model = recipe.model
    parts = [model.name_or_path or f"{model.architecture}, randomly initialised"]
    if recipe.quantization is not None:
        parts.append("quantised")
    if recipe.peft is not None:
        parts.append("with LoRA")
    return ", ".join(parts)


def _densities(lottery: LotteryConfig) -> str:
    densities = [f"{100 * (1 - lottery.pruning_rate) ** r:.3g}%" for r in range(lottery.num_rounds + 1)]
    if len(densities) > 6:
        densities = [*densities[:4], "…", densities[-1]]
    start = " of the model's own density" if lottery.start_from == "zeros" else ""
    planned = f"planned {', '.join(densities)}{start}"
    own_rates = "".join(f", {rate:g} a round for {pattern}" for pattern, rate in lottery.pruning_rates.items())
    return f"{planned} where the rate is {lottery.pruning_rate:g}{own_rates}"


def _control(control: Control) -> str:
    samples = f" x {control.per_ticket}" if control.per_ticket > 1 else ""
    rounds = "" if control.rounds is None else f" at rounds {', '.join(map(str, control.rounds))}"
    if control.rounds is not None and control.name in CHAINS:
        rounds += " and all before"
    return f"{control.name}{samples}{rounds}"
