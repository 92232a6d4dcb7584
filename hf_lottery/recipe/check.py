"""Checks a recipe's sections: each function gives what is right, and adds what is wrong to the source's problems."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from hf_lottery.config import LotteryConfig
from hf_lottery.models.architecture import architecture_problems
from hf_lottery.recipe.errors import sentences, shown, unknown_key
from hf_lottery.recipe.sections import Experiment, Hub, ModelSection, read_controls
from hf_lottery.recipe.settings import OWNERS, check_settings, settings_of
from hf_lottery.recipe.source import Source
from hf_lottery.recipe.yaml import Keys
from hf_lottery.suggest import in_brackets
from hf_lottery.tasks import TASKS, task_module

SECTIONS = ("model", "data", "training", "lottery", "peft", "quantization", "experiment", "hub")
METRICS = "metrics"  # beside the sections, a list


def check_sections(source: Source) -> dict[str, Any]:
    """Section -> its checked form, as Recipe has it. Only to be used where `source.problems` stays empty."""
    given = _given(source)
    return {
        "model": _model(source, given["model"]),
        "data": _data(source, given["data"]),
        "metrics": _metrics(source),
        "training": _settings(source, "training", given["training"]),
        "lottery": _lottery(source, given["lottery"]),
        "peft": _optional(source, "peft", given["peft"]),
        "quantization": _optional(source, "quantization", given["quantization"]),
        "experiment": _experiment(source, given["experiment"], given["lottery"]),
        "hub": None if given["hub"] is None else _own(source, "hub", Hub, given["hub"]),
    }


def typed(section: str, given: dict[str, Any]) -> dict[str, Any]:
    """Settings that were checked, as their types want them: nested dataclasses built, 6 as 6.0 for a float."""
    return check_settings(section, given, settings_of(section), _elsewhere)[0]


def refusal(section: str, values: dict[str, Any], error: Exception) -> tuple[Keys, str]:
    """What a class said when it was built, and the place of the first given setting that it names."""
    text = " ".join(str(error).split())
    key = next((key for key in values if re.search(rf"\b{re.escape(key)}\b", text)), None)
    path = (section,) if key is None else (section, key)
    return path, f"{'.'.join(path)}: {OWNERS[section]} says: {text}"


def _given(source: Source) -> dict[str, dict[str, Any] | None]:
    """Section -> what is given in it, None for one that is absent or null."""
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
    """A section that is a pydantic model of ours or of a task."""
    if given is None:
        return None
    known = {key: value for key, value in given.items() if key in cls.model_fields}
    for key in given:
        if key not in known:
            path = (section, key)
            source.add(path, unknown_key(path, cls.model_fields, f"the section {section}", _elsewhere(path)))
    try:
        return cls.model_validate_json(json.dumps(known), strict=True)
    except ValidationError as error:
        for path, sentence in sentences(error, known, (section,), f"the section {section}"):
            source.add(path, sentence)


def _model(source: Source, given: dict[str, Any] | None) -> ModelSection | None:
    model = _own(source, "model", ModelSection, given)
    if model is not None and model.architecture is not None:
        for below, sentence in architecture_problems(model.architecture, model.config):
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
    return _own(source, "data", task_module(task).Data, given)


def _metrics(source: Source) -> list[str] | None:
    names = source.values.get(METRICS)
    right = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    if names is not None and not right:
        source.add(
            (METRICS,), f"metrics is {shown(names)}; it must be a list of metrics' names, such as [accuracy, f1]"
        )
    return names if right else None


def _settings(source: Source, section: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """The given settings that are right, as written: so the class takes them, and so they go to recipe.yaml."""
    given = given or {}
    right, problems = check_settings(section, given, settings_of(section), _elsewhere)
    for path, sentence in problems:
        source.add(path, sentence)
    return {key: given[key] for key in right}


def _optional(source: Source, section: str, given: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else _settings(source, section, given)


def _lottery(source: Source, given: dict[str, Any] | None) -> dict[str, Any]:
    values = _settings(source, "lottery", given)
    for key, value in values.items():  # a value at a time, so that every one that is out of range is named
        parts = [{name: rate} for name, rate in value.items()] if isinstance(value, dict) else [value]
        for part in parts:
            try:
                LotteryConfig(**{key: part})
            except ValueError as error:
                below = tuple(part) if isinstance(part, dict) else ()
                source.add(("lottery", key, *below), f"lottery.{error}")
    return values


def _experiment(source: Source, given: dict[str, Any] | None, lottery: dict[str, Any] | None) -> Experiment | None:
    given = dict(given or {})
    controls, problems = read_controls(given.pop("controls", None) or [])
    for below, sentence in problems:
        source.add(("experiment", "controls", *below), sentence)
    last = (lottery or {}).get("num_rounds", LotteryConfig.num_rounds)
    for control in controls:
        late = [number for number in control.rounds or [] if isinstance(last, int) and 0 <= last < number]
        if late:
            source.add(
                ("experiment", "controls", control.name, "rounds"),
                f"experiment.controls.{control.name}.rounds has {late[0]}; "
                f"the last round is {last} (lottery.num_rounds)",
            )
    experiment = _own(source, "experiment", Experiment, given)
    return experiment and experiment.model_copy(update={"controls": controls})


def _elsewhere(path: Keys) -> list[str]:
    """The sections other than its own that have a key of this name."""
    names = {section: settings_of(section) for section in OWNERS}
    names |= {"model": ModelSection.model_fields, "experiment": Experiment.model_fields, "hub": Hub.model_fields}
    return [section for section in SECTIONS if path[-1] in names.get(section, ()) and section != path[0]]
