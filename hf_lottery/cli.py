"""hf-lottery: the commands. Each is a few lines that call what the package's other files do.

Nothing heavy is imported before a command needs it: `--help`, `ls` and `cp` answer without torch.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from hf_lottery import __version__

app = typer.Typer(
    help="Find, verify and publish lottery tickets. A recipe says what is trained, pruned and compared.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a name that `ls` lists.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer evaluates it on Python 3.10
    typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that go before the file's.", show_default=False),
]


def main() -> None:
    """Run the command line. What the user can put right is one message on stderr and exit status 2."""
    try:
        app(prog_name="hf-lottery")
    except (ValueError, OSError) as error:
        print(_message(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _message(error: ValueError | OSError) -> str:
    from hf_lottery.recipe_errors import RecipeError

    if isinstance(error, RecipeError):
        return str(error)  # a line for each problem, each with its place
    if isinstance(error, OSError) and error.strerror:
        return f"hf-lottery: {error.strerror}" + (f": {error.filename}" if error.filename else "")
    return f"hf-lottery: {error}"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hf_lottery {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Find, verify and publish lottery tickets."""


@app.command()
def ls() -> None:
    """List the bundled recipes."""
    from rich.console import Console
    from rich.table import Table

    from hf_lottery.bundled import bundled_recipes, description

    table = Table("recipe", "what it is", box=None, header_style="bold")
    for name, path in bundled_recipes().items():
        table.add_row(name, description(path))
    Console().print(table)


@app.command()
def cp(
    name: Annotated[str, typer.Argument(help="A name that `ls` lists.")],
    destination: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="DEST", help="File or folder; here if left out.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Copy a bundled recipe, to edit it."""
    from hf_lottery.bundled import find_recipe

    source = find_recipe(name)
    target = destination or Path()
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise FileExistsError(f"{target} is there already; give another destination, or --force to write over it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}: check it with `hf-lottery check {target}`, run it with `hf-lottery run {target}`")


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe without running it, and say what it would train."""
    from hf_lottery.recipe import load_recipe
    from hf_lottery.recipe_summary import summary

    print(summary(load_recipe(recipe, overrides or [])))


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    launcher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME:N", help="N processes of this machine, such as ddp:2, fsdp2:4 or deepspeed_zero3:8."
        ),
    ] = None,
) -> None:
    """Train what a recipe describes; a second time, continue where it stopped."""
    if launcher is not None:
        from hf_lottery.launch import relaunch

        raise typer.Exit(relaunch(launcher, ["run", recipe, *(overrides or [])]))
    from hf_lottery.recipe import load_recipe
    from hf_lottery.run import run as run_recipe

    run_recipe(load_recipe(recipe, overrides or []))


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="TICKET_OR_UNIT", help="A ticket's or a trained network's folder.")],
    to: Annotated[str, typer.Option("--to", help="adapter, rank-adapter, delta, shira or merged.")],
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--output", help="Folder to write; exported/FORM in the source's if left out."),
    ] = None,
    keep_zeros: Annotated[bool, typer.Option("--keep-zeros", help="merged: leave the base's zeros zero.")] = False,
) -> None:
    """Turn a ticket into files that load without hf_lottery: a PEFT adapter, a sparse delta, a plain model."""
    from hf_lottery.export.command import export as export_source

    print(export_source(source, to, output, keep_zeros))
