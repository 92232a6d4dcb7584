"""What a ticket.json may hold: version, enums, bounds. Anything else is refused, in one sentence that names it.

Only enums, numbers, hashes, Hub ids and bounded plain texts; no class, no import path, no file name of the ticket's
own choosing. The strings of a ticket are printed and compared, never imported, opened or run.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

from hf_lottery.config import CRITERION_NAME, PRUNED_VALUES, RETRAINING, SCOPES
from hf_lottery.ticket.document import TicketError

SCHEMA = "1.0"
REWIND_FILE, JSON_FILE, CARD_FILE = "rewind.safetensors", "ticket.json", "README.md"
ENCODINGS = ("packed", "deflate")
# where a tensor of θ_k is: the base model's own; not rewound but relied upon; computed when the model is made; or in
# rewind.safetensors, the kept values alone or all of them
THETA = ("base", "frozen", "derived", "survivors", "dense")
TASKS = ("image_classification", "text_classification", "causal_lm")
CONTROLS = (
    "ticket",
    "random_reinit",
    "random_mask",
    "no_rewinding",
    "learning_rate_rewinding",
    "one_shot",
    "shuffled_weights",
    "signed_reinit",
)
DTYPES = (
    *("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
PACKAGES = ("python", "hf_lottery", "torch", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub")
# config keys that name code, files or kernels: of no use for the shapes of a model, and never read from a stranger
_CODE_KEYS = re.compile(
    r"^_|auto_map|quantization_config|sparsity_config|implementation|use_kernels|kernel_config|custom|remote|compile"
)

# every file that a ticket folder may list; README.md is the reader's to edit, so it is not among them
FILES = re.compile(
    r"mask\.safetensors|rewind\.safetensors"
    r"|(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|(config|generation_config|adapter_config)\.json"
    r"|[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.png"
)
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/ -]{0,511}")  # of a parameter or buffer
HUB_ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
# printed, these can rewrite what a terminal shows, or cannot be printed at all
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COUNT = 1 << 48  # more weights than this is damage, not a network

Check = Callable[[Any, str], None]


def validate(document: dict[str, Any]) -> None:
    """Check all of a parsed ticket.json.

    Raises:
        TicketError: the version is not one we read, a field is missing, unknown, of the wrong kind or out of bounds.

    Warns:
        UserWarning: a newer minor version; the fields that we do not know are left out.
    """
    newer = require_major_version(document)
    if newer:
        warnings.warn(
            f"this ticket has schema {document['schema']}, newer than this hf_lottery's {SCHEMA}: fields that it does "
            "not know are left out; `pip install --upgrade hf_lottery` reads them",
            stacklevel=4,
        )
    for key in [key for key in document if key not in FIELDS]:
        if not newer:
            raise TicketError(f"ticket.json has the field {_shown(key)}, which schema {SCHEMA} does not know")
        del document[key]
    for key, (check, required) in FIELDS.items():
        if key in document:
            try:
                check(document[key], key)
            except TicketError:
                if required or not newer:
                    raise
                del document[key]  # of a form that we do not know yet
        elif required:
            raise TicketError(f"ticket.json has no field '{key}'; it is damaged, or not a ticket's")


def require_major_version(document: dict[str, Any]) -> bool:
    """Raise TicketError for another major version; whether the minor one is newer than ours."""
    version = document.get("schema")
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,4}\.\d{1,4}", version):
        raise TicketError(f"ticket.json has schema {_shown(version)}; a ticket's is a version such as '{SCHEMA}'")
    major, minor = map(int, version.split("."))
    our_major, our_minor = map(int, SCHEMA.split("."))
    if major != our_major:
        raise TicketError(
            f"this ticket has schema {version}, and this hf_lottery reads {our_major}.x; "
            "try `pip install --upgrade hf_lottery`"
        )
    return minor > our_minor


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a model's `config.to_dict()` that a ticket may carry: what `AutoConfig.for_model` needs.

    Keys that name code, files or kernels are left out, and so are texts that are not plain words.
    """

    def keep(value: Any) -> bool:
        try:
            _config_value(value, "config")
        except TicketError:
            return False
        return True

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            cleaned = {str(key): plain(item) for key, item in value.items() if not _CODE_KEYS.search(str(key))}
            return {key: item for key, item in cleaned.items() if keep({key: item})}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(config)


def _shown(value: Any) -> str:
    """A stranger's value, fit for a message: short, and without control characters."""
    return ascii(value)[:80]


def _fail(where: str, value: Any, allowed: str) -> None:
    raise TicketError(f"ticket.json: '{where}' is {_shown(value)}; it must be {allowed}")


def _one_of(choices: tuple[str, ...]) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in choices:
            _fail(where, value, "one of " + ", ".join(choices))

    return check


def _matches(pattern: re.Pattern[str], allowed: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            _fail(where, value, allowed)

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            _fail(where, value, f"a whole number from {low} to {high}")

    return check


def _number(value: Any, where: str) -> None:
    if value is not None and type(value) not in (int, float):
        _fail(where, value, "a number or null")


def _boolean(value: Any, where: str) -> None:
    if type(value) is not bool:
        _fail(where, value, "true or false")


def _share(value: Any, where: str) -> None:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        _fail(where, value, "a number from 0 to 1")


def _text(limit: int) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > limit or _CONTROL_CHARACTERS.search(value):
            _fail(where, value, f"a text of at most {limit} characters, none of them a control character")

    return check


def _optional(inner: Check) -> Check:
    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def _list(inner: Check, limit: int) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) > limit:
            _fail(where, value, f"a list of at most {limit}")
        for index, item in enumerate(value):
            inner(item, f"{where}[{index}]")

    return check


def _mapping(key: Check, value: Check, limit: int) -> Check:
    def check(found: Any, where: str) -> None:
        if not isinstance(found, dict) or len(found) > limit:
            _fail(where, found, f"an object of at most {limit} keys")
        for name, item in found.items():
            key(name, where)
            value(item, f"{where}.{name}")

    return check


def _record(fields: dict[str, Check], required: tuple[str, ...]) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict) or not set(required) <= value.keys() <= fields.keys():
            _fail(where, value, f"an object with {', '.join(required)}, and otherwise only {', '.join(fields)}")
        for name, item in value.items():
            fields[name](item, f"{where}.{name}")

    return check


def _config_value(value: Any, where: str, depth: int = 0) -> None:
    if depth > 6:
        _fail(where, value, "nested at most 6 deep")
    if isinstance(value, dict):
        if len(value) > 4096:
            _fail(where, value, "an object of at most 4096 keys")
        for key, item in value.items():
            if not re.fullmatch(r"[\w.-]{1,64}", key, re.ASCII) or _CODE_KEYS.search(key):
                _fail(where, key, "an object without keys that name code, files or kernels")
            _config_value(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, list):
        if len(value) > 65536:
            _fail(where, value, "a list of at most 65536")
        for item in value:
            _config_value(item, where, depth + 1)
    elif isinstance(value, str):
        # no slash, colon or dots: not a path, a URL, a repository or a dotted import path
        if not re.fullmatch(r"[\w -]{0,64}", value, re.ASCII) or "--" in value:
            _fail(where, value, "a plain word, not a path or an address")
    elif value is not None and type(value) not in (bool, int, float):
        _fail(where, value, "a number, a plain word, a list or an object")


def _result_line(value: Any, where: str) -> None:
    if not isinstance(value, dict) or len(value) > 128 or not value.keys() >= RESULT_KEYS:
        _fail(where, value, f"an object of at most 128 keys, {', '.join(sorted(RESULT_KEYS))} among them")
    for key, item in value.items():
        _RESULT_KEY(key, where)
        _RESULT_VALUES.get(key, _number)(item, f"{where}.{key}")


_NAME = _matches(NAME, "the name of a parameter: letters, digits, and _ . : / -")
_HASH = _matches(SHA256, "64 hexadecimal digits, in lower case")
_HUB_ID = _matches(HUB_ID, "a Hub id such as you/name")
_RESULT_KEY = _matches(re.compile(r"[A-Za-z][A-Za-z0-9_.@-]{0,63}"), "a metric's name: letters, digits and _ . @ -")
_SIZE = _integer(0, _COUNT)
_KEPT_OF_ALL = _list(_SIZE, 2)
_DENSITIES = _mapping(_NAME, _KEPT_OF_ALL, 1 << 16)
_RESULT_VALUES: dict[str, Check] = {
    "control": _one_of(CONTROLS),
    "replicate": _SIZE,
    "round": _SIZE,
    "sample": _SIZE,
    "density": _share,
    "fingerprint": _optional(_HASH),
    "densities": _optional(_DENSITIES),
}
RESULT_KEYS = {"replicate", "round", "control", "density"}
_TENSOR_RECORD = _record(
    {
        "shape": _list(_SIZE, 8),
        "dtype": _one_of(DTYPES),
        "theta": _one_of(THETA),
        "kept": _SIZE,
        "sha256": _HASH,
        "sha256_rewound": _HASH,
    },
    required=("shape", "dtype", "theta"),
)


def _tensor(value: Any, where: str) -> None:
    _TENSOR_RECORD(value, where)
    numel = math.prod(value["shape"])
    _SIZE(numel, f"{where}.shape")
    if "kept" in value or value["theta"] == "survivors":
        _integer(0, numel)(value.get("kept"), f"{where}.kept")
    if value["theta"] in ("base", "frozen"):
        _HASH(value.get("sha256"), f"{where}.sha256")
    if value["theta"] in ("frozen", "derived") and "kept" in value:
        _fail(where, value["theta"], "base, survivors or dense, as it has a mask")


_FILE = _record({"bytes": _integer(0, 1 << 44), "sha256": _HASH}, required=("bytes", "sha256"))

_LORA_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# of a LoraConfig, what a stranger needs to build the same adapter
LORA_FIELDS: dict[str, Check] = {
    "r": _integer(1, 1 << 20),
    "lora_alpha": _number,
    "lora_dropout": _number,
    "use_rslora": _boolean,
    "use_dora": _boolean,
    "bias": _one_of(("none", "all", "lora_only")),
    "task_type": _optional(_one_of(_LORA_TASKS)),
    "target_modules": _optional(_list(_NAME, 1 << 16)),
    "modules_to_save": _optional(_list(_NAME, 1 << 16)),
    "rank_pattern": _mapping(_NAME, _integer(1, 1 << 20), 1 << 16),
    "alpha_pattern": _mapping(_NAME, _number, 1 << 16),
}

# what a ticket's `info` may hold, all of it optional: where it comes from and how well it did
INFO_FIELDS: dict[str, Check] = {
    "base_model": _optional(_HUB_ID),
    "base_revision": _optional(_matches(re.compile(r"[0-9a-f]{40}"), "a commit: 40 hexadecimal digits")),
    "task": _optional(_one_of(TASKS)),
    "config": _optional(_config_value),
    "lora": _optional(_record(LORA_FIELDS, required=("r",))),
    "criterion": _matches(CRITERION_NAME, "the name of a criterion or of a function"),
    "scope": _one_of(SCOPES),
    "pattern": _matches(re.compile(r"weight|neuron|head|rank|\d{1,3}:\d{1,3}"), "weight, neuron, head, rank or n:m"),
    "retraining": _one_of(RETRAINING),
    "num_rounds": _integer(0, 10**6),
    "pruning_rate": _number,
    "seeds": _list(_integer(-(1 << 63), 1 << 64), 4096),
    "versions": _mapping(_one_of(PACKAGES), _matches(re.compile(r"[0-9A-Za-z.+!-]{1,64}"), "a version"), 32),
    "densities": _list(_DENSITIES, 4096),
    "results": _list(_result_line, 1 << 16),
    "recipe": _optional(_text(1 << 18)),
    "datasets": _list(_HUB_ID, 64),
    "license": _optional(_matches(re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}"), "a Hub licence id such as apache-2.0")),
}

# name -> (check, required)
FIELDS: dict[str, tuple[Check, bool]] = {
    "format": (_one_of(("hf_lottery_ticket",)), True),
    "schema": (_text(9), True),
    "mask_true_means": (_one_of(("kept",)), True),
    "pruned_becomes": (_one_of(PRUNED_VALUES), True),
    "mask_encoding": (_one_of(ENCODINGS), True),
    "rewind_step": (_integer(0, _COUNT), True),
    "fingerprint": (_HASH, True),
    "tensors": (_mapping(_NAME, _tensor, 1 << 18), True),
    "files": (_mapping(_matches(FILES, "one of a ticket's own file names"), _FILE, 4096), True),
    "sha256": (_HASH, True),
    **{key: (check, False) for key, check in INFO_FIELDS.items()},
}
