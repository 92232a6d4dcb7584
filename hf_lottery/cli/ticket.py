"""`hf-lottery show` and `hf-lottery push`: what a ticket is, and publishing the one of a run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_lottery.results import formatting
from hf_lottery.results.results import Results
from hf_lottery.results.table import table
from hf_lottery.results.verdict import headline, verdict
from hf_lottery.ticket.schema import JSON_FILE
from hf_lottery.ticket.ticket import Ticket


def show(source: str, revision: str | None = None, console: Console | None = None) -> None:
    """Print what a ticket is, its density per layer and its evidence. Nothing in the ticket is run.

    Args:
        source: a ticket's folder, a run's output folder, or a Hub id.
        revision: branch, tag or commit on the Hub.
        console: where to; the terminal by default.

    Raises:
        TicketError: it is not a ticket, or a damaged one.
    """
    console = console or Console()
    ticket = Ticket.from_pretrained(ticket_folder(source), revision=revision)
    info = ticket.info
    counts = ticket.mask.counts()
    kept, total = sum(k for k, _ in counts.values()), sum(n for _, n in counts.values())
    base = info.get("base_model") or "none (the ticket holds its own weights)"
    facts = {
        "ticket": source,
        "density": f"{formatting.percent(kept / total) if total else '–'}: {kept:,} of {total:,} weights",
        "rewinds to": f"step {ticket.rewind_step}",
        "a pruned weight": "is zero" if ticket.pruned_becomes == "zero" else "stays at its rewind value",
        "base model": base + (f" at {info['base_revision']}" if info.get("base_revision") else ""),
        "task": info.get("task"),
        "found by": ", ".join(
            f"{key} {info[key]}"
            for key in ("criterion", "scope", "pattern", "retraining", "num_rounds")
            if key in info
        ),
        "seeds": ", ".join(map(str, info.get("seeds", []))),
        "versions": ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()),
    }
    # Text, not markup: what a stranger wrote must not steer the terminal
    for key, value in facts.items():
        if value:
            console.print(Text(f"{key:>16}  {value}"))
    layers = Table("tensor", box=None, header_style="bold")
    for heading in ("kept", "of", "density"):
        layers.add_column(heading, justify="right")
    for name, (k, n) in counts.items():
        layers.add_row(Text(name), f"{k:,}", f"{n:,}", formatting.percent(k / n if n else 0))
    console.print()
    console.print(layers)
    results = Results(info.get("results", []))
    if results.lines:
        console.print(table(results))
        console.print(Text(headline(verdict(results))))
    else:
        console.print(Text("It comes without results."))


def push(
    output_dir: str,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
) -> str:
    """Publish the ticket of a run; returns the commit's page.

    Args:
        output_dir: a run's output folder (its `ticket/` is published), or a ticket's own folder.
        repo_id: such as you/name; made if need be.
        private, token, commit_message, revision: as in `Ticket.push_to_hub`.

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
    """The folder of a ticket: the one given, or `ticket/` in a run's output folder; a Hub id is left as it is."""
    inside = Path(source) / "ticket"
    return str(inside) if (inside / JSON_FILE).is_file() else source
