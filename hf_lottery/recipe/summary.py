"""What a recipe would do, in a few lines. No data are read and no model is built."""

from __future__ import annotations

import os

from hf_lottery.config import LotteryConfig
from hf_lottery.layout import CHAINS, TICKET
from hf_lottery.learning_rates import LearningRates
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.recipe.sections import Control, Experiment, number_of_networks
from hf_lottery.task_records import TASKS
from hf_lottery.tasks.other_text import require_text_is_there


def summary(recipe: Recipe) -> str:
    """Model, data, training, rounds with their planned densities, controls and the number of networks.

    Raises:
        RecipeError: TrainingArguments refuses the section `training`.
        FileNotFoundError: `data.path` or `data.other_text.path` is not there.
        ValueError: `data.other_text.path` is a file of a kind that is not read.
    """
    path, text = recipe.data.path, recipe.data.other_text if TASKS[recipe.data.task].language_model else None
    if path is not None and not os.path.exists(os.path.expanduser(path)):
        raise FileNotFoundError(
            f"data.path is '{path}', and there is no such file or folder; give it by data.path=FOLDER"
        )
    if text is not None:
        require_text_is_there(text)
    lottery, arguments = recipe.lottery_config(), recipe.training_arguments()
    length = f"{arguments.max_steps} steps" if arguments.max_steps > 0 else f"{arguments.num_train_epochs:g} epochs"
    experiment, rates = recipe.experiment, recipe.learning_rates()
    fewest, most = (
        number_of_networks(lottery.num_rounds, count, experiment.controls, rates)
        for count in (experiment.looks()[0], experiment.looks()[-1])
    )
    networks = f"{fewest} to {most}" if fewest != most else str(most)
    rows = {
        "recipe": f"{recipe.name} is valid" + (f" ({recipe.description})" if recipe.description else ""),
        "model": _model(recipe),
        "data": f"{recipe.data.task}: {path or recipe.data.name}",
        "forgetting": f"on {text.tokens:,} tokens of {text.named()}" if text is not None else "",
        "metrics": ", ".join(recipe.metrics or []),
        "training": f"{length} of batch {arguments.per_device_train_batch_size} a device, "
        f"{arguments.optim.value} at {arguments.learning_rate:g}",
        "rounds": f"0 to {lottery.num_rounds}, {lottery.criterion} pruning by {lottery.scope}, {lottery.retraining}"
        + "".join(
            f", {name} fresh" for name in ("rewind_optimizer", "data_order") if lottery.to_dict()[name] == "fresh"
        ),
        "densities": _densities(lottery),
        "controls": "; ".join(_control(control, rates) for control in experiment.controls) or "none",
        "tuned": "" if experiment.tune is None else f"dense and tickets, {_at(TICKET, rates)}",
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


def _control(control: Control, rates: LearningRates | None) -> str:
    samples = f" x {control.per_ticket}" if control.per_ticket > 1 else ""
    rounds = "" if control.rounds is None else f" at rounds {', '.join(map(str, control.rounds))}"
    if control.rounds is not None and control.name in CHAINS:
        rounds += " and all before"
    at = "" if rates is None or rates.of(control.name) == (None,) else f", {_at(control.name, rates)}"
    return f"{control.name}{samples}{rounds}{at}"


def _at(name: str, rates: LearningRates) -> str:
    """The learning rates that a control, or the ticket, is trained at."""
    found = sorted(rates.own if rate is None else rate for rate in rates.of(name))
    return f"learning rate{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
