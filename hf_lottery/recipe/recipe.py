"""Recipe: a recipe file that was read and checked, and the objects that its sections describe."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

from hf_lottery import __version__
from hf_lottery.bundled import description, find_recipe, recipe_name
from hf_lottery.config import AUTO, LotteryConfig
from hf_lottery.layout import RECIPE_FILE
from hf_lottery.learning_rates import LearningRates
from hf_lottery.recipe.check import check_sections, refusal, typed
from hf_lottery.recipe.errors import RecipeError
from hf_lottery.recipe.rates import rates_of
from hf_lottery.recipe.sections import Experiment, Hub, ModelSection
from hf_lottery.recipe.source import Source, read_source
from hf_lottery.recipe.yaml import write_yaml
from hf_lottery.redaction import redacted, redacted_word, sets_secret, without_secrets
from hf_lottery.sealed import read_sealed_text

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainingArguments

# What may change between two runs into the same output folder: these settings show or store results, but do not
# change them.
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
        metrics: names of metrics that are measured in addition to the task's own. None: none.
        data: the section, as the task's own `Data`.
        training, lottery, peft, quantization: the given arguments of TrainingArguments, LotteryConfig, LoraConfig and
            BitsAndBytesConfig. `training` always has output_dir; peft and quantization are None where absent.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    name: str
    description: str
    model: ModelSection
    data: BaseModel
    metrics: list[str] | None
    training: dict[str, Any]
    lottery: dict[str, Any]
    peft: dict[str, Any] | None
    quantization: dict[str, Any] | None
    experiment: Experiment
    hub: Hub | None
    _source: Source = PrivateAttr()
    _words: list[str] = PrivateAttr()
    _trusts_metric_code: bool = PrivateAttr(default=False)

    @property
    def trusts_metric_code(self) -> bool:
        """Whether the person who runs this has allowed metrics that are not in this package. No recipe can say so."""
        return self._trusts_metric_code

    def training_arguments(self, **changes: Any) -> TrainingArguments:
        """TrainingArguments of the section `training`; `changes` override its settings.

        Raises:
            RecipeError: TrainingArguments refuses a value, or this machine does not support it (such as bf16).
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

        return self._build(LoraConfig, "peft", typed("peft", self.peft))

    def quantization_config(self) -> BitsAndBytesConfig | None:
        """BitsAndBytesConfig of the section `quantization`, None without one."""
        if self.quantization is None:
            return None
        from transformers import BitsAndBytesConfig

        return self._build(BitsAndBytesConfig, "quantization", typed("quantization", self.quantization))

    def resolved(self) -> dict[str, Any]:
        """The sections as plain values: as given, and with our defaults for what is not given."""
        controls = {
            control.name: control.model_dump(exclude={"name"}, exclude_none=True)
            for control in self.experiment.controls
        }
        sections = {
            "model": self.model.model_dump(exclude_none=True, exclude_defaults=True),
            "data": {
                key: value
                for key, value in self.data.model_dump(mode="json").items()
                # null is left out where it is the default; input_column: null says something
                if value is not None or type(self.data).model_fields[key].default is not None
            },
            "metrics": self.metrics,
            "training": self.training,
            "lottery": self.lottery_config().to_dict(),
            "peft": self.peft,
            "quantization": self.quantization,
            "experiment": {**self._how_often(), "controls": controls},
            "hub": None if self.hub is None else self.hub.model_dump(exclude_none=True),
        }
        return {name: values for name, values in sections.items() if values is not None}

    def _how_often(self) -> dict[str, Any]:
        """`replicates`; for `auto` also how many there may be; `tune` where it is given."""
        experiment = self.experiment
        most = {"max_replicates": experiment.max_replicates} if experiment.replicates == AUTO else {}
        tune = {"tune": experiment.tune} if experiment.tune is not None else {}
        return {"replicates": experiment.replicates, **most, **tune}

    def learning_rates(self) -> LearningRates | None:
        """The learning rates of the experiment; None if every network has `training.learning_rate`."""
        return rates_of(self.experiment, self.training)

    def to_yaml(self) -> str:
        """`resolved()` as the text of a recipe file, for the output folder and the ticket, without access tokens."""
        first = f"# {redacted(self.description)}\n\n" if self.description else ""
        values = write_yaml(without_secrets(self.resolved()))
        return f"{first}{values}\n# {self.name}, as resolved by hf_lottery {__version__}.\n"

    def words(self) -> list[str]:
        """The recipe's name and the overrides it was loaded with, without access tokens.

        Other users of a machine can read the command line of a process; `pass_token_on` is how a token gets there.
        """
        return [redacted_word(word) for word in self._words if not sets_secret(word)]

    def pass_token_on(self) -> None:
        """Give `training.hub_token` to the processes that this one starts, as HF_TOKEN in their environment."""
        if self.training.get("hub_token"):
            os.environ["HF_TOKEN"] = self.training["hub_token"]

    def command(self) -> str:
        """The command that runs this recipe, with the name and the overrides it was loaded with."""
        return shlex.join(["hf-lottery", "run", *self.words(), *trust_words(self.trusts_metric_code)])

    def _build(self, cls: type, section: str, values: dict[str, Any]) -> Any:
        try:
            return cls(**values)
        except Exception as error:  # whatever the class raises for a wrong value, it refuses it
            raise RecipeError([self._source.problem(*refusal(section, values, error))]) from error


def trust_words(trust_metric_code: bool) -> list[str]:
    """The command line's words for metrics that are not in this package: none, unless they are trusted."""
    return ["--trust-metric-code"] if trust_metric_code else []


def load_recipe(path_or_name: str, overrides: Iterable[str] = (), trust_metric_code: bool = False) -> Recipe:
    """Read and check a recipe.

    Args:
        path_or_name: a recipe file, or the name of a bundled one, such as `quickstart`.
        overrides: `section.key=value` each, checked like the file.
        trust_metric_code: accept metrics that are code from elsewhere. True only if the person who runs the recipe has
            said so, or where no metric is measured.

    Raises:
        RecipeError: the recipe has problems; all of them are listed.
        FileNotFoundError: there is no such recipe.
    """
    path = find_recipe(path_or_name)
    source = read_source(path, list(overrides))
    if source.problems and not source.values:  # not YAML: there is nothing to check
        raise RecipeError(source.problems)
    name, sections = recipe_name(path), check_sections(source, trust_metric_code)
    if source.problems:
        raise RecipeError(source.problems)
    if sections["training"].get("output_dir") is None:
        sections["training"]["output_dir"] = f"outputs/{name}"
    if isinstance(sections["training"]["output_dir"], str):  # as TrainingArguments does
        sections["training"]["output_dir"] = os.path.expanduser(sections["training"]["output_dir"])
    recipe = Recipe(name=name, description=description(path), **sections)
    recipe._source = source
    recipe._words = [path_or_name, *overrides]
    recipe._trusts_metric_code = trust_metric_code
    recipe.lora_config()  # quick to build; TrainingArguments depends on the machine, and is built later
    recipe.quantization_config()
    return recipe


def load_written(
    output_dir: str | os.PathLike, overrides: Iterable[str] = (), trust_metric_code: bool = False
) -> Recipe:
    """Read the recipe.yaml that a run has written into its output folder.

    Raises:
        DamagedFile: it was changed since.
        RecipeError, FileNotFoundError: as `load_recipe`.
    """
    path = Path(output_dir) / RECIPE_FILE
    if path.exists():
        read_sealed_text(path)
    return load_recipe(str(path), overrides, trust_metric_code)


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two recipes: dotted key -> (old value, new value), None where not given.

    Settings that only show or store results (EXEMPT: output_dir, report_to, logging, hub, …) are left out.
    """
    from transformers import TrainingArguments

    defaults = {f"training.{field.name}": field.default for field in fields(TrainingArguments)}
    before, after = (defaults | _flat(without_secrets(recipe.resolved())) for recipe in (old, new))
    return {
        key: (before.get(key), after.get(key))
        for key in (before | after)
        if before.get(key) != after.get(key) and not re.fullmatch(EXEMPT, key)
    }


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, below in value.items()
            for key, leaf in _flat(below, f"{path}.{name}" if path else name).items()
        }
    return {path: value}
