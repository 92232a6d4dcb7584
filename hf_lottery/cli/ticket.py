"""`hf-lottery show` and `hf-lottery push`: print a ticket, and publish the ticket of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_lottery.layout import TICKET_FOLDER
from hf_lottery.results import formatting
from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results
from hf_lottery.results.terminal import table
from hf_lottery.results.verdict import verdict
from hf_lottery.ticket.schema import JSON_FILE
from hf_lottery.ticket.ticket import Ticket

_FOUND_BY = ("criterion", "scope", "pattern", "retraining", "rewind_optimizer", "data_order", "num_rounds")


def show(source: str, revision: str | None = None, console: Console | None = None) -> None:
    """Print what a ticket is, its density per layer and its results. Nothing in the ticket is run.

    Args:
        source: a ticket's folder, a run's output folder, or a Hub id.
        revision: branch, tag or commit on the Hub.
        console: where to print; the terminal by default.

    Raises:
        TicketError: it is not a ticket, or a damaged one.
    """
    console = console or Console()
    ticket = Ticket.from_pretrained(ticket_folder(source), revision=revision)
    # Text, not markup: what a stranger wrote must not change how the terminal prints
    for key, value in _facts(source, ticket).items():
        if value:
            console.print(Text(f"{key:>16}  {value}"))
    console.print()
    console.print(_layers(ticket.mask.counts()))
    results = Results(ticket.info.get("results", []))
    if results.lines:
        console.print(table(results))
        console.print(Text(headline(verdict(results))))
    else:
        console.print(Text("It comes without results."))


def _facts(source: str, ticket: Ticket) -> dict[str, str | None]:
    info = ticket.info
    kept, total = ticket.mask.count(), ticket.mask.numel()
    how = [f"{key} {info[key]}" for key in _FOUND_BY if key in info]
    return {
        "ticket": source,
        "density": f"{_density(kept, total)}: {kept:,} of {total:,} weights",
        "rewinds to": f"step {ticket.rewind_step}",
        "a pruned weight": "is zero" if ticket.pruned_becomes == "zero" else "stays at its rewind value",
        "base model": _base_model(info),
        "task": info.get("task"),
        "found by": ", ".join(how),
        "seeds": ", ".join(map(str, info.get("seeds", []))),
        "versions": ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()),
    }


def _base_model(info: Mapping) -> str:
    name = info.get("base_model") or "none (the ticket holds its own weights)"
    return name + (f" at {info['base_revision']}" if info.get("base_revision") else "")


def _layers(counts: Mapping[str, tuple[int, int]]) -> Table:
    layers = Table("tensor", box=None, header_style="bold")
    for heading in ("kept", "of", "density"):
        layers.add_column(heading, justify="right")
    for name, (kept, total) in counts.items():
        layers.add_row(Text(name), f"{kept:,}", f"{total:,}", _density(kept, total))
    return layers


def _density(kept: int, total: int) -> str:
    return formatting.percent(kept / total) if total else formatting.NOTHING


def push(
    output_dir: str,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
) -> str:
    """Publish the ticket of a run; returns the address of the commit.

    Args:
        output_dir: a run's output folder (its `ticket/` is published), or a ticket's own folder.
        repo_id: such as you/name; it is created if it does not exist.
        private, token, commit_message, revision: as for `Ticket.push_to_hub`.

    Raises:
        TicketError: there is no ticket, or it is damaged.
    """
    return Ticket.push_folder(
        ticket_folder(output_dir),
        repo_id,
        private=private,
        token=token,
        commit_message=commit_message,
        revision=revision,
    )


def ticket_folder(source: str) -> str:
    """The ticket in `source`: for a run's output folder its `ticket/`; a ticket's folder or Hub id is not changed."""
    inside = Path(source) / TICKET_FOLDER
    return str(inside) if (inside / JSON_FILE).is_file() else source
