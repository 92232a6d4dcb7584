"""LotteryConfig: all settings of a ticket search."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any

from hf_lottery.printable import shown
from hf_lottery.suggest import in_brackets

# the names in `hf_lottery.pruning.criteria.CRITERIA`; here, so that a config is checked without importing torch
CRITERIA = (
    "magnitude",
    "random",
    "magnitude_increase",
    "large_init",
    "movement",
    "snip",
    "grasp",
    "synflow",
    "wanda",
    "lora_product",
)
PATTERNS = ("weight", "neuron", "head", "rank", "n:m")  # the names of `hf_lottery.pruning.patterns.PATTERNS`
SCOPES = ("layer", "global", "erk", "uniform")
EMBEDDINGS = ("rows",)
RETRAINING = ("weight_rewinding", "learning_rate_rewinding", "fine_tuning")
PRUNED_VALUES = ("zero", "init")
REWIND_OPTIMIZERS = ("state", "fresh")
DATA_ORDERS = ("replay", "fresh")
START_FROM = ("dense", "zeros")
AUTO = "auto"
MOST_ROUNDS = 10_000
LONGEST_PATTERN = 10_000  # characters of a regular expression
_N_OF_M = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")
# transformers' HfArgumentParser makes a command-line option of each field, and would make functions of its values
CriterionSetting = (str | Callable[..., dict]) if TYPE_CHECKING else str
CRITERION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # as a ticket records it


@dataclass(frozen=True)
class LotteryConfig:
    """The settings of a ticket search: what is pruned, by which criterion, how often, and to which step it rewinds.

    Raises:
        ValueError: a value is out of its range; the message names the field, the value and what is allowed.
    """

    num_rounds: int = field(
        default=5,
        metadata={"help": "Prunings. 5 means rounds 0 to 5, six trainings, the last at density (1 − pruning_rate)^5."},
    )
    pruning_rate: float = field(
        default=0.2, metadata={"help": "Share of the remaining weights that a round removes, between 0 and 1."}
    )
    pruning_rates: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "help": "Module-name pattern -> its own rate, e.g. {classifier: 0.1}. 0: these weights are not pruned."
        },
    )
    scope: str = field(
        default="layer",
        metadata={"help": f"Where scores are compared: one of {', '.join(SCOPES)}.", "choices": SCOPES},
    )
    criterion: CriterionSetting = field(
        default="magnitude",
        metadata={
            "help": f"How a weight is scored; the lowest scores are pruned: one of {', '.join(CRITERIA)}. In Python "
            "also a function (weights, context) -> scores; see hf_lottery.pruning.custom.",
            "choices": CRITERIA,
        },
    )
    pattern: str = field(
        default="weight",
        metadata={
            "help": "The unit of pruning: weight, n:m (such as 2:4), neuron (of a gated MLP: its rows of gate and up "
            "with its column of down), head, or rank (of a LoRA). docs/patterns.md says what each is in which layer."
        },
    )
    prune_embeddings: str | None = field(
        default=None,
        metadata={
            "help": "rows: prune whole rows of the token embeddings too, those with the lowest scores. Unset: none.",
            "choices": (*EMBEDDINGS, None),
        },
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Names of modules whose weights are pruned, as in PEFT: a list of name endings, or a regex. "
            "Unset: every linear and convolution weight that is trained."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of modules that are not pruned, in the same form."}
    )
    start_from: str = field(
        default="dense",
        metadata={
            "help": "The mask of round 0: dense, all weights are kept, or zeros, those that are zero in the model are "
            "pruned from the start, for a model that is sparse already.",
            "choices": START_FROM,
        },
    )
    rewind_step: float | str = field(
        default=0,
        metadata={
            "help": "k of θ_k: a number of steps, below 1 a share of the training steps (like warmup_steps), or auto "
            "in a recipe: the earliest of rewind_steps at which the dense network is stable."
        },
    )
    rewind_steps: list[int] = field(
        default_factory=list, metadata={"help": "For rewind_step auto: the steps to try, such as [0, 500, 1000]."}
    )
    retraining: str = field(
        default="weight_rewinding",
        metadata={
            "help": f"How the remaining weights are retrained: one of {', '.join(RETRAINING)}.",
            "choices": RETRAINING,
        },
    )
    pruned_value: str = field(
        default="zero",
        metadata={
            "help": "What a pruned weight becomes: zero, or init (it stays at its rewind value, as in LoTA).",
            "choices": PRUNED_VALUES,
        },
    )
    rewind_optimizer: str = field(
        default="state",
        metadata={
            "help": "The optimizer's state at step k of a later round: state, that which it had in round 0, or fresh, "
            "none, as in the papers. The learning-rate schedule goes on from step k. At k = 0 both are the same.",
            "choices": REWIND_OPTIMIZERS,
        },
    )
    data_order: str = field(
        default="replay",
        metadata={
            "help": "The data order and dropout of a later round: replay, those of round 0, or fresh, from a seed of "
            "its own, which the round's controls share.",
            "choices": DATA_ORDERS,
        },
    )

    def __post_init__(self):
        _require_integer("num_rounds", self.num_rounds)
        if not 0 <= self.num_rounds <= MOST_ROUNDS:
            raise ValueError(f"num_rounds is {shown(self.num_rounds)}; it must be 0 or more, up to {MOST_ROUNDS:,}")
        _require_rate("pruning_rate", self.pruning_rate)
        if not isinstance(self.pruning_rates, dict):
            raise ValueError(f"pruning_rates is {shown(self.pruning_rates)}; it must be a mapping, name -> rate")
        for pattern, rate in self.pruning_rates.items():
            _require_rate(f"pruning_rates['{pattern}']", rate, zero_allowed=True)
        _require_choice("scope", self.scope, SCOPES)
        _require_criterion(self.criterion)
        _require_choice("retraining", self.retraining, RETRAINING)
        _require_choice("pruned_value", self.pruned_value, PRUNED_VALUES)
        _require_choice("rewind_optimizer", self.rewind_optimizer, REWIND_OPTIMIZERS)
        _require_choice("start_from", self.start_from, START_FROM)
        _require_choice("data_order", self.data_order, DATA_ORDERS)
        _require_pattern(self.pattern)
        self._require_criterion_fits()
        self._require_rewind_step()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(self.__dict__[name], str):
                require_regex(name, self.__dict__[name])

    def _require_criterion_fits(self) -> None:
        """Refuse a criterion that the pattern, or pruning of embeddings, cannot use."""
        if self.pattern == "rank" and self.criterion not in ("magnitude", "lora_product"):
            raise ValueError(
                f"criterion is {self.criterion_name!r}, and pattern rank scores a pair by the norms of its two "
                "vectors: use criterion magnitude"
            )
        if self.prune_embeddings is None:
            return
        _require_choice("prune_embeddings", self.prune_embeddings, EMBEDDINGS)
        if self.criterion in ("synflow", "wanda"):
            raise ValueError(
                f"prune_embeddings is rows, and criterion {self.criterion} cannot score embeddings: "
                "use criterion magnitude"
            )

    def _require_rewind_step(self) -> None:
        for step in self.rewind_steps:
            _require_integer("rewind_steps", step)
            if step < 0:
                raise ValueError(f"rewind_steps has {shown(step)}; it must be a list of steps, 0 or more")
        if self.rewind_step == AUTO:
            return
        _require_number("rewind_step", self.rewind_step)
        if self.rewind_step < 0 or (self.rewind_step >= 1 and self.rewind_step != int(self.rewind_step)):
            raise ValueError(
                f"rewind_step is {shown(self.rewind_step)}; it must be a whole number of steps, or a share below 1"
            )

    @property
    def criterion_name(self) -> str:
        """The criterion's name, for tickets and messages; that of the function if it is one."""
        return self.criterion.__name__ if isinstance(self.criterion, FunctionType) else self.criterion

    def resolve_rewind_step(self, max_steps: int) -> int:
        """k in optimizer steps, of a training of `max_steps` steps. A `rewind_step` below 1 is a share, rounded up."""
        if self.rewind_step < 1:
            return -int(-self.rewind_step * max_steps // 1)
        return int(self.rewind_step)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON values; if the criterion is a function, its name."""
        return {**asdict(self), "criterion": self.criterion_name}


def _require_number(name: str, value: Any) -> None:
    # a whole number of hundreds of digits is no float
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if not right:
        raise ValueError(f"{name} is {shown(value)}; it must be a number")


def _require_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number")


def require_regex(name: str, pattern: str) -> None:
    """Raise ValueError unless `pattern`, of the setting `name`, is a regular expression."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"{name} has {len(pattern):,} characters; it must have at most {LONGEST_PATTERN:,}")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{name} is {shown(pattern)}, which is no regular expression ({error}): escape special characters with "
            "a backslash, or give a list of names"
        ) from None


def _require_rate(name: str, value: Any, zero_allowed: bool = False) -> None:
    _require_number(name, value)
    if not (0 < value < 1 or (zero_allowed and value == 0)):
        allowed = "0 or between 0 and 1" if zero_allowed else "between 0 and 1, both excluded"
        raise ValueError(f"{name} is {shown(value)}; it must be {allowed}")


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = in_brackets(value, choices)
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(choices)}{hint}")


def _require_criterion(criterion: Any) -> None:
    """Raise ValueError unless it is a known name, or a function of two arguments with a name for tickets."""
    if not callable(criterion):
        _require_choice("criterion", criterion, CRITERIA)
        return
    advice = "write it as `def my_scores(weights, context):` and pass my_scores"
    if not isinstance(criterion, FunctionType) or not CRITERION_NAME.fullmatch(criterion.__name__):
        raise ValueError(f"criterion is {criterion!r}, which has no name that a ticket could record: {advice}")
    try:
        inspect.signature(criterion).bind(None, None)
    except TypeError:
        raise ValueError(f"criterion {criterion.__name__} does not take (weights, context): {advice}") from None
    if criterion.__name__ in CRITERIA:
        raise ValueError(
            f"criterion is a function called {criterion.__name__!r}, which is also the name of a built-in criterion: "
            "give it another name, or pass the name as text to use the built-in one"
        )


def _require_pattern(pattern: Any) -> None:
    if pattern in PATTERNS and pattern != "n:m":
        return
    n, m = n_of_m(str(pattern)) or (0, 0)
    if not 0 < n < m:
        raise ValueError(
            f"pattern is {shown(pattern)}; it must be one of {', '.join(PATTERNS)}, where 0 < n < m, such as 2:4"
        )


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """`"2:4"` -> (2, 4); None for a pattern that is not of the form n:m."""
    found = _N_OF_M.fullmatch(pattern)
    return (int(found[1]), int(found[2])) if found else None
