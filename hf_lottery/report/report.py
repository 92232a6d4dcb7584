"""The report of an output folder: one HTML page that needs nothing else, Markdown for the card, plots as files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_lottery.report import page, style
from hf_lottery.report.sections import Section, make_sections
from hf_lottery.results.results import Results, missing_units, read_results, unit_name
from hf_lottery.results.verdict import TOLERANCE, headline, verdict

_NAMED = 8  # missing units that are listed by name; the rest is a count


def write_report(output_dir: str | os.PathLike, tolerance: float = TOLERANCE, bars: str = "min-max") -> Path:
    """Write `report/` into an output folder and return the path of its page.

    `report/index.html` is self-contained (plots inline, no scripts); `report/report.md` and `report/plots/*.png|svg`
    are for the model card. With units unfinished the report says which.

    Args:
        output_dir: a run's output folder, with results.jsonl.
        tolerance: of matching; see `verdict`.
        bars: `min-max` over replicates or `interval` (95% Student-t) in the plots.

    Raises:
        FileNotFoundError: the folder has no results.jsonl.
        ValueError: nothing has finished, or the units are not of one recipe.
    """
    output_dir = Path(output_dir)
    results = read_results(output_dir)
    recipe, notes = _read_recipe(output_dir / "recipe.yaml")
    found = verdict(results, tolerance)
    sections = make_sections(output_dir, results, tolerance, bars)
    if notes := [*results.notes, *notes, *_unfinished(results, recipe)]:
        sections.insert(0, Section("What is missing", notes))
    folder = output_dir / "report"
    for section in sections:
        if section.plot:
            style.save(section.plot[1], folder / "plots", section.plot[0])
    title = f"Lottery ticket report: {_subject(recipe, output_dir)}"
    recipe_text = (output_dir / "recipe.yaml").read_text(encoding="utf-8") if recipe else ""
    (folder / "report.md").write_text(page.markdown(title, headline(found), sections), encoding="utf-8")
    path = folder / "index.html"
    path.write_text(page.html(title, headline(found), sections, folder / "plots", recipe_text), encoding="utf-8")
    return path


def _read_recipe(path: Path) -> tuple[dict[str, Any], list[str]]:
    unknown = "so what was planned is not known beyond the finished units."
    if not path.is_file():
        return {}, [f"The folder has no recipe.yaml, {unknown}"]
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        recipe = None
    return (recipe, []) if isinstance(recipe, dict) else ({}, [f"recipe.yaml cannot be read, {unknown}"])


def _unfinished(results: Results, recipe: Mapping[str, Any]) -> list[str]:
    missing = missing_units(results, recipe)
    if not missing:
        return []
    named = "; ".join(unit_name(unit) for unit in missing[:_NAMED])
    more = f"; and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    count = "1 unit has" if len(missing) == 1 else f"{len(missing)} units have"
    return [f"{count} not finished: {named}{more}. Run the recipe again: finished units are not run twice."]


def _subject(recipe: Mapping[str, Any], output_dir: Path) -> str:
    """What the report is about: the recipe's model and data, else the folder's name."""
    model, data = recipe.get("model") or {}, recipe.get("data") or {}
    parts = [model.get("name_or_path") or model.get("architecture"), data.get("name") or data.get("path")]
    return " on ".join(str(part) for part in parts if part) or output_dir.resolve().name
