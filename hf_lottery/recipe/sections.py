"""The sections of a recipe that are our own: `model`, `experiment`, `hub`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hf_lottery.layout import CHAINS, CONTROLS, LOTTERY_CONTROLS, TICKET
from hf_lottery.learning_rates import LearningRates
from hf_lottery.printable import shown
from hf_lottery.recipe.code import loader_argument
from hf_lottery.recipe.errors import sentences, unknown_key
from hf_lottery.recipe.yaml import Keys
from hf_lottery.recipe.yaml_1_1 import as_meant
from hf_lottery.suggest import in_brackets

MOST_REPEATS = 10_000  # of a whole experiment, or of a control
MOST_NETWORKS = 100_000
MOST_RATES = 10  # learning rates of a control
LARGEST_RATE = 10**12


class Section(BaseModel):
    """A section. Unknown keys are errors, and values are not converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class ModelSection(Section):
    """What is trained: pretrained weights (`name_or_path`), or random ones (`architecture`).

    Args:
        name_or_path: a Hub id, a folder, or `package:NAME/FOLDER`, for from_pretrained of the task's Auto class.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights.
        gguf_file: name of the file, where name_or_path holds GGUF files.
        device_map: `auto` spreads a large model over all devices of one process.
        architecture: a model type of transformers, including ours (lenet, conv-net, …).
        config: arguments of the model's config.
    """

    name_or_path: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    gguf_file: str | None = None
    device_map: Literal["auto"] | None = None
    architecture: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        if (self.name_or_path is None) == (self.architecture is None):
            raise ValueError(
                "model takes either name_or_path (pretrained weights) or architecture (random ones), "
                + ("not both" if self.architecture else "and has neither")
            )
        for key in ("revision", "gguf_file"):
            if self.architecture is not None and getattr(self, key) is not None:
                raise ValueError(f"model.{key} needs name_or_path; an architecture has no files to choose from")
        return self

    @model_validator(mode="after")
    def _only_config_arguments(self) -> ModelSection:
        if problem := loader_argument(self.config):
            raise ValueError(f"model.config.{problem}")
        return self


class Control(Section):
    """One control: networks that the tickets are compared with.

    Args:
        name: one of CONTROLS.
        rounds: the rounds at which it is trained, and for one of CHAINS those before. None: every round from 1.
        per_ticket: number of samples at each of these rounds.
        learning_rate: what it is trained at instead of training.learning_rate. Of a list, each; the best by validation
            is compared.
    """

    name: str
    rounds: list[int] | None = None
    per_ticket: int = Field(default=1, ge=1, le=MOST_REPEATS)
    learning_rate: float | list[float] | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in CONTROLS:
            raise ValueError(f"it must be one of {', '.join(CONTROLS)}{in_brackets(name, CONTROLS)}")
        return name

    @field_validator("rounds")
    @classmethod
    def _in_order(cls, rounds: list[int] | None) -> list[int] | None:
        if rounds is None:
            return None
        if not rounds or min(rounds) < 1:
            raise ValueError("it must be a list of rounds, 1 or more, such as [1, 4, 7]; leave it out for every round")
        return sorted(set(rounds))

    @field_validator("learning_rate", mode="plain")  # one sentence, where a union would have one for each member
    @classmethod
    def _few_rates(cls, given: Any) -> float | list[float] | None:
        rates = given if isinstance(given, list) else [given]
        numbers = all(isinstance(rate, (int, float)) and not isinstance(rate, bool) for rate in rates)
        right = numbers and all(0 < rate <= LARGEST_RATE for rate in rates)
        if given is not None and not (right and 1 <= len(rates) <= MOST_RATES and len(set(rates)) == len(rates)):
            raise ValueError(
                f"it must be a learning rate above 0, or a list of 1 to {MOST_RATES} different ones, such as "
                "[0.001, 0.003, 0.01]"
            )
        return given


class Experiment(Section):
    """How often the search is repeated, and with which controls.

    Args:
        replicates: number of repetitions. They use the seeds training.seed, training.seed + 1, … `auto`: go on until a
            winning ticket is shown or ruled out, or max_replicates is reached.
        max_replicates: for `auto`.
        tune: `learning_rate`: the dense network, the tickets, and controls without learning rates of their own are
            also trained at every rate that a control lists, and the best by validation is compared.
        controls: in a recipe a list of names, or a mapping from name to {rounds, per_ticket, learning_rate}.
    """

    replicates: Annotated[int, Field(ge=1, le=MOST_REPEATS)] | Literal["auto"] = 1
    max_replicates: int = Field(default=20, ge=3, le=MOST_REPEATS)
    tune: Literal["learning_rate"] | None = None
    controls: list[Control] = Field(default_factory=list)

    def looks(self) -> list[int]:
        """The numbers of replicates after which the results are judged: one, or for `auto` 3, 5, 8, 12, 18, …"""
        if self.replicates != "auto":
            return [self.replicates]
        found = [3]
        while found[-1] < self.max_replicates:
            found.append(min(found[-1] + (found[-1] + 1) // 2, self.max_replicates))
        return found


def rounds_with_both(controls: Iterable[Control], num_rounds: int) -> set[int]:
    """The rounds at which both controls of a winning ticket are run."""
    every = range(1, num_rounds + 1)
    rounds = {control.name: set(control.rounds or every) for control in controls}
    return set.intersection(*(rounds.get(name, set()) for name in LOTTERY_CONTROLS))


def number_of_networks(
    num_rounds: int, replicates: int, controls: list[Control], rates: LearningRates | None = None
) -> int:
    """How many networks `hf_lottery.layout.planned_networks` lists, without listing them."""

    def at(name: str) -> int:
        return 1 if rates is None else len(rates.of(name))

    of_controls = sum(_rounds(num_rounds, each) * each.per_ticket * at(each.name) for each in controls)
    return replicates * ((num_rounds + 1) * at(TICKET) + of_controls)


def _rounds(num_rounds: int, control: Control) -> int:
    """At how many rounds a control is trained."""
    if control.rounds is None:
        return num_rounds
    return max(control.rounds) if control.name in CHAINS else len(control.rounds)


class Hub(Section):
    """What `hf-lottery push` publishes, and where.

    Args:
        repo_id: the repository, such as you/lenet-300-100-ticket.
        private: whether the repository is private.
        commit_message: message of the upload.
        include_model: whether the trained weights are uploaded too.
        compress: whether the files are compressed.
    """

    repo_id: str | None = None
    private: bool = False
    commit_message: str | None = None
    include_model: bool = False
    compress: bool = False


def read_controls(given: Any) -> tuple[list[Control], list[tuple[Keys, str]]]:
    """Read `experiment.controls`: a list of names, or a mapping from name to {rounds, per_ticket, learning_rate}.

    Returns:
        The controls without a problem (`dense` is left out), and (path below `experiment.controls`, sentence) for each
        problem.
    """
    if isinstance(given, list):
        written = [((str(index),), name, {}) for index, name in enumerate(given)]
    elif isinstance(given, dict):
        written = [((name,), name, {} if options is None else options) for name, options in given.items()]
    else:
        sentence = "it must be a list of names, or a mapping from name to {rounds: [1, 4], per_ticket: 3}"
        return [], [((), f"experiment.controls is {shown(given)}; {sentence}")]
    controls, problems = [], []
    for path, name, options in written:
        if name == "dense":
            continue  # older recipes, output folders and tickets list it: it is round 0, and is always trained
        if name in [control.name for control in controls]:
            problems.append((path, f"experiment.controls has {name!r} twice; for more samples write per_ticket"))
            continue
        control, wrong = _read_control(path, name, options)
        controls += [] if control is None else [control]
        problems += wrong
    return controls, problems


def _read_control(path: Keys, name: Any, options: Any) -> tuple[Control | None, list[tuple[Keys, str]]]:
    """One control and its problems, as in `read_controls`."""
    here, known = ("experiment", "controls", *path), ("rounds", "per_ticket", "learning_rate")
    if not isinstance(options, dict):
        return None, [(path, f"{'.'.join(here)} is {shown(options)}; it takes {{rounds: [1, 4], per_ticket: 3}}")]
    problems = [((*path, key), unknown_key((*here, key), known, "a control")) for key in options if key not in known]
    values = {"name": name, **{key: options[key] for key in known if key in options}}
    if "learning_rate" in values:
        rates = values["learning_rate"]
        meant = [as_meant("learning_rate", rate, (float,)) for rate in (rates if isinstance(rates, list) else [rates])]
        values["learning_rate"] = meant if isinstance(rates, list) else meant[0]
    try:
        return Control.model_validate_json(json.dumps(values), strict=True), problems
    except ValidationError as error:
        # the name has no key of its own in the file: it is a key of the mapping, or an item of the list
        wrong_name = f"{'.'.join(here)}.name is"
        problems += [
            (full[2:], sentence.replace(wrong_name, "experiment.controls has"))
            for full, sentence in sentences(error, values, here, "a control")
        ]
        return None, problems
