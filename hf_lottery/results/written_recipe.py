"""What reports need of the recipe.yaml of an output folder: its text, its subject, and the networks it plans."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_lottery.layout import CONTROLS, RECIPE_FILE, Network, planned_networks
from hf_lottery.learning_rates import DEFAULT, learning_rates
from hf_lottery.results.finding import MIN_REPLICATES
from hf_lottery.sealed import read_sealed_text


@dataclass(frozen=True)
class WrittenControl:
    """A control as recipe.yaml has it; see `hf_lottery.layout.PlannedControl`."""

    name: str
    rounds: list[int] | None = None
    per_ticket: int = 1
    learning_rate: float | list[float] | None = None


@dataclass(frozen=True)
class WrittenRecipe:
    """A recipe.yaml that was read, but not checked: reports also read folders of older versions.

    Args:
        text: of the file.
        sections: as YAML reads them.
    """

    text: str
    sections: Mapping[str, Any]

    def section(self, name: str) -> Mapping[str, Any]:
        """A section by its name; empty where the recipe has none."""
        return self.sections.get(name) or {}

    @property
    def model(self) -> str | None:
        return self.section("model").get("name_or_path") or self.section("model").get("architecture")

    @property
    def data(self) -> str | None:
        return self.section("data").get("name") or self.section("data").get("path")

    def planned(self) -> list[Network]:
        """The networks that the recipe plans; none where it does not say how many rounds."""
        num_rounds = self.section("lottery").get("num_rounds")
        if num_rounds is None:
            return []
        replicates = self.section("experiment").get("replicates", 1)
        first = MIN_REPLICATES if replicates == "auto" else replicates  # how many more there will be is not known
        controls, tune = list(self._controls()), self.section("experiment").get("tune") is not None
        own = self.section("training").get("learning_rate", DEFAULT)
        rates = learning_rates(own, {control.name: control.learning_rate for control in controls}, tune)
        return planned_networks(num_rounds, first, controls, rates)

    def _controls(self) -> Iterator[WrittenControl]:
        """The controls that are known: an older version's `dense`, which was no network of its own, is left out."""
        controls = self.section("experiment").get("controls") or {}
        for name in controls:
            options = (controls[name] if isinstance(controls, dict) else None) or {}
            if name in CONTROLS:
                yield WrittenControl(
                    name, options.get("rounds"), options.get("per_ticket", 1), options.get("learning_rate")
                )


def read_recipe(output_dir: str | os.PathLike) -> WrittenRecipe:
    """Read recipe.yaml of an output folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was changed since it was written, is not YAML, or no mapping.
    """
    path = Path(output_dir) / RECIPE_FILE
    if not path.exists():
        raise FileNotFoundError(f"'{output_dir}' has no {RECIPE_FILE}: give the output folder of a run")
    text = read_sealed_text(path)
    try:
        sections = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        sections = None
    if not isinstance(sections, dict):
        raise ValueError(f"'{path}' cannot be read: it is no YAML mapping of sections")
    return WrittenRecipe(text, sections)
