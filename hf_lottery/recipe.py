"""A recipe file -> a Recipe: its sections checked, every error at once; from there the objects they describe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from hf_lottery import __version__
from hf_lottery.bundled import description, find_recipe, recipe_name
from hf_lottery.config import LotteryConfig
from hf_lottery.recipe_errors import RecipeError, nearest, sentences, shown, unknown_key
from hf_lottery.recipe_model import check_architecture
from hf_lottery.recipe_sections import Experiment, Hub, ModelSection, read_controls
from hf_lottery.recipe_settings import OWNERS, check_settings, settings_of
from hf_lottery.recipe_source import Source, read_source
from hf_lottery.tasks import TASKS, task_module
from hf_lottery.yaml_lines import Keys, write_yaml

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainingArguments

SECTIONS = ("model", "data", "training", "lottery", "peft", "quantization", "experiment", "hub")

# What may change between two runs into the same output folder: it shows or stores results, and alters none.
EXEMPT = (
    r"training\.(output_dir|disable_tqdm|report_to|run_name|project|trackio_\w+|log_level\w*|log_on_each_node)"
    r"|training\.(logging_(strategy|steps|first_step)|push_to_hub|hub_\w+|save_total_limit)"
    r"|hub(\..*)?"
)


class Recipe(BaseModel):
    """A recipe that was read and checked.

    Attributes:
        name: a bundled recipe's name, or the file's name without `.yaml`.
        description: the file's first comment line.
        model, experiment, hub: the sections; hub is None where the recipe has none.
        data: the section, as the task's own `Data`.
        training, lottery, peft, quantization: what the recipe gives of TrainingArguments, LotteryConfig, LoraConfig
            and BitsAndBytesConfig; `training` always has output_dir; peft and quantization are None if not wanted.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    name: str
    description: str
    model: ModelSection
    data: BaseModel
    training: dict[str, Any]
    lottery: dict[str, Any]
    peft: dict[str, Any] | None
    quantization: dict[str, Any] | None
    experiment: Experiment
    hub: Hub | None
    _source: Source = PrivateAttr()

    def training_arguments(self, **changes: Any) -> TrainingArguments:
        """TrainingArguments of the section `training`, with `changes` over them.

        Raises:
            RecipeError: TrainingArguments refuses them, or this machine cannot do what they ask for.
        """
        from transformers import TrainingArguments

        return self._build(TrainingArguments, "training", {**self.training, **changes})

    def lottery_config(self) -> LotteryConfig:
        """LotteryConfig of the section `lottery`."""
        return LotteryConfig(**self.lottery)

    def lora_config(self) -> LoraConfig | None:
        """LoraConfig of the section `peft`, None without one."""
        if self.peft is None:
            return None
        from peft import LoraConfig

        return self._build(LoraConfig, "peft", _typed("peft", self.peft))

    def quantization_config(self) -> BitsAndBytesConfig | None:
        """BitsAndBytesConfig of the section `quantization`, None without one."""
        if self.quantization is None:
            return None
        from transformers import BitsAndBytesConfig

        return self._build(BitsAndBytesConfig, "quantization", _typed("quantization", self.quantization))

    def resolved(self) -> dict[str, Any]:
        """The sections as plain values: what was given, and our defaults where nothing was."""
        controls = {
            control.name: control.model_dump(exclude={"name"}, exclude_none=True)
            for control in self.experiment.controls
        }
        sections = {
            "model": self.model.model_dump(exclude_none=True, exclude_defaults=True),
            "data": self.data.model_dump(mode="json", exclude_none=True),
            "training": self.training,
            "lottery": self.lottery_config().to_dict(),
            "peft": self.peft,
            "quantization": self.quantization,
            "experiment": {"replicates": self.experiment.replicates, "controls": controls},
            "hub": None if self.hub is None else self.hub.model_dump(exclude_none=True),
        }
        return {name: values for name, values in sections.items() if values is not None}

    def to_yaml(self) -> str:
        """`resolved()` as a recipe file, for the output folder."""
        first = f"# {self.description}\n\n" if self.description else ""
        return f"{first}{write_yaml(self.resolved())}\n# {self.name}, as resolved by hf_lottery {__version__}.\n"

    def _build(self, cls: type, section: str, values: dict[str, Any]) -> Any:
        try:
            return cls(**values)
        except (ValueError, TypeError, ImportError) as error:
            raise RecipeError([self._source.problem(*_refusal(section, values, error))]) from error


def load_recipe(path_or_name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path_or_name: a recipe file, or the name of a bundled one, such as `quickstart`.
        overrides: `section.key=value` each, checked like the file.

    Raises:
        RecipeError: something is wrong with it; everything that is, is listed.
        FileNotFoundError: there is no such recipe.
    """
    path = find_recipe(path_or_name)
    source = read_source(path, list(overrides))
    if source.problems and not source.values:  # not YAML: nothing else can be said
        raise RecipeError(source.problems)
    given = _sections(source)
    name = recipe_name(path)
    parts = {
        "model": _model(source, given["model"]),
        "data": _data(source, given["data"]),
        "training": _settings(source, "training", given["training"]),
        "lottery": _lottery(source, given["lottery"]),
        "peft": _optional(source, "peft", given["peft"]),
        "quantization": _optional(source, "quantization", given["quantization"]),
        "experiment": _experiment(source, given["experiment"], given["lottery"]),
        "hub": None if given["hub"] is None else _own(source, "hub", Hub, given["hub"]),
    }
    if source.problems:
        raise RecipeError(source.problems)
    if parts["training"].get("output_dir") is None:
        parts["training"]["output_dir"] = f"outputs/{name}"
    recipe = Recipe(name=name, description=description(path), **parts)
    recipe._source = source
    recipe.lora_config()
    recipe.quantization_config()
    return recipe


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Where two recipes would give other results: dotted key -> (old value, new value), None where not given.

    Keys that only show or store results (EXEMPT: output_dir, report_to, logging, hub, …) are left out.
    """
    from transformers import TrainingArguments

    defaults = {f"training.{field.name}": field.default for field in fields(TrainingArguments)}
    before, after = defaults | _flat(old.resolved()), defaults | _flat(new.resolved())
    return {
        key: (before.get(key), after.get(key))
        for key in (before | after)
        if before.get(key) != after.get(key) and not re.fullmatch(EXEMPT, key)
    }


def _sections(source: Source) -> dict[str, dict[str, Any] | None]:
    """Section -> what is given in it, None for one that is absent or null."""
    for key in source.values:
        if key not in SECTIONS:
            source.add((key,), unknown_key((key,), SECTIONS, "a recipe", _elsewhere((key,))))
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
    for path, sentence in [] if model is None else check_architecture(model):
        source.add(path, sentence)
    return model


def _data(source: Source, given: dict[str, Any] | None) -> Any:
    if given is None:
        return None
    task = given.get("task")
    if task not in list(TASKS):
        what = "is missing" if task is None else f"is {shown(task)}"
        source.add(("data", "task"), f"data.task {what}; it must be one of {', '.join(TASKS)}{nearest(task, TASKS)}")
        return None
    return _own(source, "data", task_module(task).Data, given)


def _settings(source: Source, section: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """The given settings that are right, as written: so the class takes them, and so they go to recipe.yaml."""
    given = given or {}
    right, problems = check_settings(section, given, settings_of(section), _elsewhere)
    for path, sentence in problems:
        source.add(path, sentence)
    return {key: given[key] for key in right}


def _typed(section: str, given: dict[str, Any]) -> dict[str, Any]:
    return check_settings(section, given, settings_of(section), _elsewhere)[0]


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


def _refusal(section: str, values: dict[str, Any], error: Exception) -> tuple[Keys, str]:
    """What a class said when it was built, and the place of the first given setting that it names."""
    text = " ".join(str(error).split())
    key = next((key for key in values if re.search(rf"\b{re.escape(key)}\b", text)), None)
    path = (section,) if key is None else (section, key)
    return path, f"{'.'.join(path)}: {OWNERS[section]} says: {text}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, below in value.items()
            for key, leaf in _flat(below, f"{path}.{name}" if path else name).items()
        }
    return {path: value}
