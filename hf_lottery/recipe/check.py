"""Checks the sections of a recipe: returns their valid parts, and adds each problem to the Source's problems."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from hf_lottery.config import AUTO, MOST_ROUNDS, LotteryConfig
from hf_lottery.layout import LOTTERY_CONTROLS
from hf_lottery.models.architecture import architecture_problems, too_large
from hf_lottery.printable import shown
from hf_lottery.recipe.errors import sentences, unknown_key
from hf_lottery.recipe.ranges import LARGEST_SEED, impossible, leaves, out_of_range
from hf_lottery.recipe.rates import rates_of, unfit_rates
from hf_lottery.recipe.sections import (
    MOST_NETWORKS,
    Control,
    Experiment,
    Hub,
    ModelSection,
    number_of_networks,
    read_controls,
    rounds_with_both,
)
from hf_lottery.recipe.settings import OWNERS, check_settings, settings_of
from hf_lottery.recipe.source import Source
from hf_lottery.recipe.yaml import Keys
from hf_lottery.suggest import in_brackets
from hf_lottery.tasks import TASKS, task_module
from hf_lottery.training.mask_schedule import DYNAMIC, unfit_setting

SECTIONS = ("model", "data", "training", "lottery", "peft", "quantization", "experiment", "hub")
METRICS = "metrics"  # a list, unlike the sections


def check_sections(source: Source, trust_metric_code: bool = False) -> dict[str, Any]:
    """Section -> its checked form, for Recipe. It is complete only if `source.problems` stays empty.

    Args:
        source: the values as given.
        trust_metric_code: whether `metrics` may have others than the bundled ones.
    """
    _drop_impossible(source)
    given = _given(source)
    sections = {
        "model": _model(source, given["model"]),
        "data": _data(source, given["data"]),
        "metrics": _metrics(source, trust_metric_code),
        "training": _settings(source, "training", given["training"]),
        "lottery": _lottery(source, given["lottery"]),
        "peft": _optional(source, "peft", given["peft"]),
        "quantization": _optional(source, "quantization", given["quantization"]),
        "experiment": _experiment(source, given["experiment"], given["lottery"]),
        "hub": None if given["hub"] is None else _own(source, "hub", Hub, given["hub"]),
    }
    if not source.problems:
        _check_together(source, sections)
    return sections


def typed(section: str, given: dict[str, Any]) -> dict[str, Any]:
    """Checked settings, converted to their types: nested dataclasses are built, and 6 becomes 6.0 for a float."""
    return check_settings(section, given, settings_of(section), _elsewhere)[0]


def refusal(section: str, values: dict[str, Any], error: Exception) -> tuple[Keys, str]:
    """(path, sentence) of an error that a class raised: the path of the first given setting that the error names."""
    text = " ".join(str(error).split()) or "it is not possible"
    if not isinstance(error, (ValueError, TypeError, ImportError)):
        text = f"{type(error).__name__}: {text}"
    key = next((key for key in values if re.search(rf"\b{re.escape(key)}\b", text)), None)
    path = (section,) if key is None else (section, key)
    return path, f"{'.'.join(path)}: {OWNERS[section]} says: {text}"


def _drop_impossible(source: Source) -> None:
    """Add a problem for each number or text that no setting takes, and drop the section's key that it is in."""
    for path, value in list(leaves(source.values)):
        if sentence := impossible(value):
            source.add(path, f"{'.'.join(path)} {sentence}")
            section = source.values.get(path[0])
            if isinstance(section, dict) and path[1:]:
                section.pop(path[1], None)
            else:
                source.values.pop(path[0], None)


def _check_together(source: Source, sections: dict[str, Any]) -> None:
    """What concerns more than one section: the number of networks, the controls' rates and limits, all seeds."""
    lottery, training, experiment = LotteryConfig(**sections["lottery"]), sections["training"], sections["experiment"]
    replicates = experiment.looks()[-1]
    rates = rates_of(experiment, training)
    networks = number_of_networks(lottery.num_rounds, replicates, experiment.controls, rates)
    if networks > MOST_NETWORKS:
        sentence = f"the recipe plans {networks:,} networks; {MOST_NETWORKS:,} is the most: lower "
        sentence += "experiment.replicates, lottery.num_rounds, or the controls' rounds and per_ticket"
        source.add(("experiment",), sentence)
    for path, sentence in unfit_rates(experiment, lottery, training):
        source.add(path, sentence)
    for control in experiment.controls:
        if control.name in DYNAMIC:
            path, sentence = unfit_setting(control.name, lottery, training)
            if sentence is not None:
                source.add(path, f"{path[0]}.{sentence}")
                break
    pretrained = sections["model"].architecture is None
    if not pretrained and TASKS[sections["data"].task].language_model and sections["data"].other_text is not None:
        sentence = "data.other_text shows what a pretrained model forgets, and model.architecture has random weights"
        source.add(("data", "other_text"), f"{sentence}: leave it out")
    seed = training.get("seed", 0)
    if seed + replicates - 1 > LARGEST_SEED:
        source.add(
            ("training", "seed"),
            f"training.seed is {seed}, and replicate {replicates - 1} would have the seed {seed + replicates - 1}; "
            f"the largest is {LARGEST_SEED}",
        )


def _given(source: Source) -> dict[str, dict[str, Any] | None]:
    """Section -> its settings as given. None for a section that is absent or null."""
    for key in source.values:
        if key not in (*SECTIONS, METRICS):
            source.add((key,), unknown_key((key,), (*SECTIONS, METRICS), "a recipe", _elsewhere((key,))))
    given = {}
    for section in SECTIONS:
        values = source.values.get(section)
        if values is not None and not isinstance(values, dict):
            source.add((section,), f"{section} is {shown(values)}; it must be a mapping of its settings")
            values = None
        elif values is None and section in ("model", "data"):
            source.add((section,), f"{section} is missing; every recipe has one")
        given[section] = values
    return given


def _own(source: Source, section: str, cls: type[BaseModel], given: dict[str, Any] | None) -> Any:
    """Check a section that is a pydantic model, of hf_lottery or of a task."""
    if given is None:
        return None
    known = {key: value for key, value in given.items() if key in cls.model_fields}
    for key in given:
        if key not in known:
            path = (section, key)
            source.add(path, unknown_key(path, cls.model_fields, f"the section {section}", _elsewhere(path)))
    problems = [found for key, value in known.items() for found in out_of_range(section, key, value)]
    checked = None
    try:
        checked = cls.model_validate_json(json.dumps(known), strict=True)
    except ValidationError as error:
        said = sentences(error, known, (section,), f"the section {section}")
        problems = said + [found for found in problems if found[0] not in [path for path, _ in said]]
    for path, sentence in problems:
        source.add(path, sentence)
    return checked


def _model(source: Source, given: dict[str, Any] | None) -> ModelSection | None:
    model = _own(source, "model", ModelSection, given)
    if model is None:
        return None
    if model.architecture is not None:
        problems = architecture_problems(model.architecture, model.config)
    else:
        problems = too_large(model.config, ("config",))
    for below, sentence in problems:
        source.add(("model", *below), sentence)
    return model


def _data(source: Source, given: dict[str, Any] | None) -> Any:
    if given is None:
        return None
    task = given.get("task")
    if task not in list(TASKS):
        what = "is missing" if task is None else f"is {shown(task)}"
        source.add(
            ("data", "task"), f"data.task {what}; it must be one of {', '.join(TASKS)}{in_brackets(task, TASKS)}"
        )
        return None
    if "other_text" in given and not TASKS[task].language_model:
        named = [name for name, record in TASKS.items() if record.language_model]
        source.add(
            ("data", "other_text"),
            f"data.other_text is for the task {' or '.join(named)}; {task} has no loss on text: leave it out",
        )
        given = {key: value for key, value in given.items() if key != "other_text"}
    return _own(source, "data", task_module(task).Data, given)


def _metrics(source: Source, trust_code: bool) -> list[str] | None:
    names = source.values.get(METRICS)
    right = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    if names is not None and not right:
        source.add(
            (METRICS,), f"metrics is {shown(names)}; it must be a list of metrics' names, such as [accuracy, f1]"
        )
    if names is None or not right:
        return None
    from hf_lottery.metrics import untrusted  # imports evaluate

    for index, name in enumerate(names):
        if problem := untrusted(name, trust_code):
            source.add((METRICS, str(index)), problem)
    return names


def _settings(source: Source, section: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """The valid settings of a section, as written in the recipe: not converted, for the class and for recipe.yaml."""
    given = given or {}
    right, problems = check_settings(section, given, settings_of(section), _elsewhere)
    for path, sentence in problems:
        source.add(path, sentence)
    return {key: given[key] for key in right}


def _optional(source: Source, section: str, given: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else _settings(source, section, given)


def _lottery(source: Source, given: dict[str, Any] | None) -> dict[str, Any]:
    values = _settings(source, "lottery", given)
    for key, value in values.items():  # one value at a time, so that every value out of range is reported
        parts = [{name: rate} for name, rate in value.items()] if isinstance(value, dict) else [value]
        for part in parts:
            try:
                LotteryConfig(**{key: part})
            except ValueError as error:
                below = tuple(part) if isinstance(part, dict) else ()
                source.add(("lottery", key, *below), f"lottery.{error}")
    if values.get("rewind_step") == AUTO and not values.get("rewind_steps"):
        sentence = (
            "lottery.rewind_step is auto; say in lottery.rewind_steps which steps to try, such as [0, 500, 1000]"
        )
        source.add(("lottery", "rewind_step"), sentence)
    return values


def _experiment(source: Source, given: dict[str, Any] | None, lottery: dict[str, Any] | None) -> Experiment | None:
    given = dict(given or {})
    controls, problems = read_controls(given.pop("controls", None) or [])
    last = (lottery or {}).get("num_rounds", LotteryConfig.num_rounds)
    for below, sentence in problems + _late_rounds(controls, last):
        source.add(("experiment", "controls", *below), sentence)
    experiment = _own(source, "experiment", Experiment, given)
    if experiment and experiment.replicates == AUTO and not rounds_with_both(controls, _sane(last)):
        source.add(
            ("experiment", "replicates"),
            "experiment.replicates is auto, which goes on until a winning ticket is shown or ruled out; that "
            f"takes both {' and '.join(LOTTERY_CONTROLS)} at one round: add them to experiment.controls",
        )
    if experiment and experiment.replicates != AUTO and "max_replicates" in given:
        sentence = "experiment.max_replicates is for experiment.replicates: auto; leave it out"
        source.add(("experiment", "max_replicates"), sentence)
    return experiment and experiment.model_copy(update={"controls": controls})


def _sane(num_rounds: Any) -> int:
    """A number of rounds as given, which may have a wrong type or be out of its range."""
    return min(num_rounds, MOST_ROUNDS) if isinstance(num_rounds, int) else 1


def _late_rounds(controls: list[Control], last: Any) -> list[tuple[Keys, str]]:
    """A problem for each control with a round after the last. `last` is as given, so it may have a wrong type."""
    late = {
        control.name: [r for r in control.rounds or [] if isinstance(last, int) and r > last >= 0]
        for control in controls
    }
    return [
        (
            (name, "rounds"),
            f"experiment.controls.{name}.rounds has {rounds[0]}; the last round is {last} (lottery.num_rounds)",
        )
        for name, rounds in late.items()
        if rounds
    ]


def _elsewhere(path: Keys) -> list[str]:
    """The other sections that have a key of this name."""
    names = {section: settings_of(section) for section in OWNERS}
    names |= {"model": ModelSection.model_fields, "experiment": Experiment.model_fields, "hub": Hub.model_fields}
    return [section for section in SECTIONS if path[-1] in names.get(section, ()) and section != path[0]]
