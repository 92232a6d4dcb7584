"""The report of an output folder: one HTML page that needs nothing else, Markdown for the card, plots as files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from hf_lottery.files import write_text
from hf_lottery.layout import MARKDOWN_FILE, PAGE_FILE, PLOTS_FOLDER, RECIPE_FILE, REPORT_FOLDER, Network
from hf_lottery.report import page, style
from hf_lottery.report.damage import damages
from hf_lottery.report.section import Section
from hf_lottery.report.sections import make_sections
from hf_lottery.results.diverged import named, sentence
from hf_lottery.results.headline import headline
from hf_lottery.results.results import Results, read_results
from hf_lottery.results.verdict import TOLERANCE, Verdict, verdict
from hf_lottery.results.written_recipe import WrittenRecipe, read_recipe
from hf_lottery.sealed import DamagedFile

_log = logging.getLogger(__name__)
_NAMED = 8  # networks that are missing are listed by name up to this number, the rest is a count


def write_report(output_dir: str | os.PathLike, tolerance: float = TOLERANCE, bars: str = "min-max") -> Path:
    """Write `report/` into an output folder and return the path of its page.

    `report/index.html` is self-contained (plots inline, no scripts); `report/report.md` and `report/plots/*.png|svg`
    are for the model card. If networks are unfinished the report says which.

    Args:
        output_dir: a run's output folder, with results.jsonl.
        tolerance: how far from dense still matches; see `verdict`.
        bars: `min-max` over replicates or `interval` (95% Student-t) in the plots.

    Raises:
        FileNotFoundError: the folder has no results.jsonl.
        ValueError: nothing has finished, or the networks are not of one recipe.
    """
    results = read_results(output_dir)
    at_end, at_early_stop = (verdict(results, tolerance, early_stop) for early_stop in (False, True))
    return report_of(Path(output_dir), results, at_end, at_early_stop, bars)


def report_of(
    output_dir: Path, results: Results, at_end: Verdict, at_early_stop: Verdict, bars: str = "min-max"
) -> Path:
    """`write_report` for results that were read before, with their verdicts at the end and at the early-stop step."""
    recipe, notes = _recipe(output_dir)
    sections = make_sections(output_dir, results, at_end, at_early_stop, bars)
    notes = [*results.notes, *damages(output_dir, results), *notes]
    for note in notes:
        _log.warning("%s", note)
    planned = recipe.planned() if recipe else []
    if diverged := _diverged(results, planned):
        sections.insert(0, Section("What diverged", diverged, warning=True))
    if notes := [*notes, *_unfinished(results.missing(planned))]:
        sections.insert(0, Section("What is missing", notes, warning=True))
    folder = output_dir / REPORT_FOLDER
    for section in sections:
        if section.plot:
            style.save(section.plot[1], folder / PLOTS_FOLDER, section.plot[0])
    title = f"Lottery ticket report: {_subject(recipe, output_dir)}"
    write_text(folder / MARKDOWN_FILE, page.markdown(title, headline(at_end), sections))
    text = recipe.text if recipe else ""
    write_text(folder / PAGE_FILE, page.html(title, headline(at_end), sections, folder / PLOTS_FOLDER, text))
    return folder / PAGE_FILE


def _recipe(output_dir: Path) -> tuple[WrittenRecipe | None, list[str]]:
    """The run's recipe, or a sentence that it cannot be read."""
    unknown = "so what was planned is not known beyond the finished networks."
    try:
        return read_recipe(output_dir), []
    except FileNotFoundError:
        return None, [f"The folder has no {RECIPE_FILE}, {unknown}"]
    except DamagedFile as damage:
        return None, [f"{RECIPE_FILE} is damaged ({damage.why}), {unknown}"]
    except ValueError:
        return None, [f"{RECIPE_FILE} cannot be read, {unknown}"]


def _diverged(results: Results, planned: list[Network]) -> list[str]:
    """A sentence for each network that diverged, with what is left out for it; empty if none did."""
    sentences, gone = [], results.left_out(planned)
    for line in results.diverged():
        above = sorted(other for other, cause in gone.items() if cause == Network.of_line(line))
        text = sentence(line) + (f"; left out, because they stand on it: {named(above)}." if above else ".")
        sentences.append(text[0].upper() + text[1:])
    if sentences:
        sentences.append("A network that diverged has no value in any table, plot or comparison: see n there.")
    return sentences


def _unfinished(missing: list[Network]) -> list[str]:
    if not missing:
        return []
    count = "1 network has" if len(missing) == 1 else f"{len(missing)} networks have"
    return [f"{count} not finished: {named(missing)}. Run the recipe again: finished networks are not trained twice."]


def _subject(recipe: WrittenRecipe | None, output_dir: Path) -> str:
    """What the report is about: the recipe's model and data, else the folder's name."""
    parts: Iterable[str | None] = (recipe.model, recipe.data) if recipe else ()
    return " on ".join(str(part) for part in parts if part) or output_dir.resolve().name
