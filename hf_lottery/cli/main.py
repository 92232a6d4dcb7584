"""hf-lottery: the commands. Each is a few lines that call another room of the package.

A command imports what it needs when it runs, so that `--help`, `ls` and `cp` work without importing torch.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from hf_lottery import __version__
from hf_lottery.stopped import Stopped

app = typer.Typer(
    help="Find, verify and publish lottery tickets. A recipe says what is trained, pruned and compared.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a name that `ls` lists.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer evaluates it on Python 3.10
    typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace those of the file.", show_default=False),
]

TrustMetricCode = Annotated[
    bool,
    typer.Option(
        "--trust-metric-code",
        help="Run the code of metrics that are not in this package: a folder or a Hub name in the recipe's `metrics`.",
    ),
]


def main() -> None:
    """Run the command line. An error that the user can correct is one message on stderr and exit status 2.

    What the Hub does not do is a message and exit status 1: the same command may succeed later.
    """
    try:
        app(prog_name="hf-lottery")
    except (ValueError, OSError) as error:
        from hf_lottery.redaction import redacted
        from hf_lottery.ticket.hub_error import HubError

        print(redacted(_message(error)), file=sys.stderr)
        sys.exit(1 if isinstance(error, HubError) else 2)
    except Stopped as stopped:
        sys.exit(_say_stopped(stopped))
    except KeyboardInterrupt:
        sys.exit(130)


def _message(error: ValueError | OSError) -> str:
    from hf_lottery.printable import one_line, some_lines
    from hf_lottery.recipe.errors import RecipeError

    if isinstance(error, RecipeError):
        return str(error)  # a line for each problem, with file and line number
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"hf-lottery: {error.strerror}" + (f": {error.filename}" if error.filename else ""))
    return some_lines(f"hf-lottery: {error}")


def _say_stopped(stopped: Stopped) -> int:
    """Say what was stopped, and how it goes on; returns the exit status."""
    launched = "RANK" in os.environ  # by torchrun or accelerate: this process's own command is not what was typed
    if not launched or os.environ["RANK"] == "0":
        from hf_lottery.redaction import redacted_word

        again = "" if launched else f": {shlex.join(['hf-lottery', *map(redacted_word, sys.argv[1:])])}"
        print(f"{stopped}. Nothing is lost; the same command goes on from here{again}", file=sys.stderr)
    return 128 + stopped.number


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hf_lottery {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
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
        typer.Argument(metavar="DEST", help="File or folder; the current folder if left out.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Copy a bundled recipe, so that you can edit it."""
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
def check(recipe: RecipeArgument, overrides: Overrides = None, trust_metric_code: TrustMetricCode = False) -> None:
    """Check a recipe without running it, and print what it would train."""
    from hf_lottery.recipe.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [], trust_metric_code)
    from hf_lottery.redaction import redacted
    from hf_lottery.runner.check import check as check_recipe

    print(redacted(check_recipe(loaded)))


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print how much time, disk and memory it takes; train nothing.")
    ] = False,
    pilot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="OUT", help="With --plan: a finished run whose noise says how many replicates decide."),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", help="Train N networks side by side on this machine.")] = 1,
    launcher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME:N", help="N processes of this machine: ddp:2, fsdp2:4, deepspeed_zero3:8."),
    ] = None,
    submit: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="CLUSTER", help="Queue the workers on a cluster: slurm, or local to try it on this machine."
        ),
    ] = None,
    trust_metric_code: TrustMetricCode = False,
    as_worker: Annotated[bool, typer.Option("--as-worker", hidden=True)] = False,
) -> None:
    """Train what a recipe describes; if it was stopped before, continue."""
    from hf_lottery.recipe.recipe import load_recipe, trust_words

    # before processes start, so that its errors are printed once
    loaded = load_recipe(recipe, overrides or [], trust_metric_code)
    words = [*loaded.words(), *trust_words(trust_metric_code)]
    if launcher is not None and (workers != 1 or submit is not None):
        raise ValueError("--launcher spreads one network over processes: leave out --workers and --submit")
    if pilot is not None and not plan:
        raise ValueError("--pilot is for --plan: add --plan, or leave it out")
    if plan:
        from hf_lottery.redaction import redacted
        from hf_lottery.runner.plan import make_plan

        print(redacted(str(make_plan(loaded, pilot))))
    elif launcher is not None:
        from hf_lottery.runner.launch import relaunch

        loaded.pass_token_on()
        raise typer.Exit(relaunch(launcher, ["run", *words]))
    elif as_worker:
        from hf_lottery.runner.workers import work

        work(loaded)
    elif submit is not None:
        from hf_lottery.runner.workers import submit as submit_workers

        loaded.pass_token_on()
        submit_workers(loaded, words, workers, submit)
    elif workers != 1:
        from hf_lottery.runner.workers import run_side_by_side

        loaded.pass_token_on()
        run_side_by_side(loaded, words, workers)
    else:
        from hf_lottery.distributed.processes import leave
        from hf_lottery.runner.run import run as run_recipe

        run_recipe(loaded)
        leave()


OutputFolder = Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")]


@app.command()
def report(
    output_dir: OutputFolder,
    tolerance: Annotated[
        float, typer.Option(help="Largest loss against dense that still matches: 0.002 is 0.2 points of accuracy.")
    ] = 0.002,
    bars: Annotated[str, typer.Option(help="min-max over replicates, or interval (95% Student-t).")] = "min-max",
) -> None:
    """Write the report of a run, also of an unfinished one: a page, Markdown for the card, and the plots."""
    from hf_lottery.report.report import write_report

    print(write_report(output_dir, tolerance, bars))


@app.command()
def instability(
    output_dir: OutputFolder,
    number: Annotated[int, typer.Option("--round", help="The round whose mask is used; 0 is the dense network.")],
    rewind_step: Annotated[int, typer.Option(help="The step k from which the copies are trained.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the data orders, one for each copy.")] = "1,2,3",
    trust_metric_code: TrustMetricCode = False,
) -> None:
    """Measure instability: train copies from step k under several data orders, and measure the errors between them."""
    from hf_lottery.cli.instability import instability_of_run

    try:
        orders = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds is {seeds!r}; it must be whole numbers, such as 1,2,3") from None
    instability_of_run(output_dir, number, rewind_step, orders, trust_metric_code=trust_metric_code)


@app.command()
def show(
    source: Annotated[str, typer.Argument(metavar="DIR_OR_REPO", help="A ticket's or run's folder, or a Hub id.")],
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Branch, tag or commit on the Hub."),
    ] = None,
) -> None:
    """Print what a ticket is, its density per layer and its results. Nothing in it is run."""
    from hf_lottery.cli.ticket import show as show_ticket

    show_ticket(source, revision)


@app.command()
def push(
    output_dir: Annotated[str, typer.Argument(metavar="OUT", help="The output folder of a run, or a ticket's.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="YOU/NAME", help="The repository; it is created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private repository.")] = False,
    commit_message: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--message", "-m", help="Message of the commit."),
    ] = None,
) -> None:
    """Publish a run's ticket on the Hub, with its card."""
    from hf_lottery.cli.ticket import push as push_ticket

    print(push_ticket(output_dir, repo_id, private=private or None, commit_message=commit_message))


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(metavar="TICKET_OR_NETWORK", help="A ticket's or a trained network's folder.")
    ],
    to: Annotated[str, typer.Option("--to", help="adapter, rank-adapter, delta, shira or merged.")],
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--output", help="Folder to write; exported/FORM in the source's folder if left out."),
    ] = None,
    keep_zeros: Annotated[
        bool, typer.Option("--keep-zeros", help="For merged: weights that are zero in the base model stay zero.")
    ] = False,
) -> None:
    """Write a ticket as files that load without hf_lottery: a PEFT adapter, a sparse delta, a plain model."""
    from hf_lottery.cli.export import export as export_source

    print(export_source(source, to, output, keep_zeros))
