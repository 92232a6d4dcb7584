"""What ticket.json may hold: versions, allowed values, limits. The error for anything else names the field.

Only fixed words, numbers, hashes, Hub ids and bounded plain texts; no class, no import path, no file name that the
ticket could choose. The texts of a ticket are printed and compared, never imported, opened or run.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

from hf_lottery.config import (
    CRITERION_NAME,
    DATA_ORDERS,
    PATTERNS,
    PRUNED_VALUES,
    RETRAINING,
    REWIND_OPTIMIZERS,
    SCOPES,
    START_FROM,
)
from hf_lottery.layout import CONTROLS, REWIND_FILE
from hf_lottery.learning_rates import OF_RECIPE, USED
from hf_lottery.mask import MASK_FILE
from hf_lottery.pruning.coverage import REASONS
from hf_lottery.task_records import TASKS
from hf_lottery.ticket import validators as v
from hf_lottery.ticket.document import TicketError, check_digest, parse
from hf_lottery.ticket.model_config import config_object

SCHEMA = "2.2"
_NEWEST_MINOR = {1: 0, 2: 2}  # a major version that is read -> its newest minor version that this code knows
JSON_FILE, CARD_FILE = "ticket.json", "README.md"
ENCODINGS = ("packed", "deflate")
# where a tensor's value at step k is stored. base: in the base model. frozen: in the base model too, and not trained.
# derived: nowhere, the model computes it when it is made. survivors: in rewind.safetensors, the kept values alone.
# dense: in rewind.safetensors, all values
STORED = ("base", "frozen", "derived", "survivors", "dense")
DTYPES = (
    *("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
PACKAGES = ("python", "hf_lottery", "torch", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub")

# every file that a ticket.json may list; README.md may be edited by anyone, so it is not among them
FILES = re.compile(
    rf"{re.escape(MASK_FILE)}|{re.escape(REWIND_FILE)}"
    r"|(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|(config|generation_config|adapter_config)\.json"
    r"|[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.png"
)
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/ -]{0,511}")  # of a parameter or buffer
HUB_ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_COUNT = 1 << 48  # a network with more weights than this does not exist


def read_document(data: bytes) -> dict[str, Any]:
    """The object in the bytes of a ticket.json, every field checked. One of schema 1.x comes in the form of 2.0.

    Raises:
        TicketError: the bytes are damaged, the version is not one that is read, or a field is missing, unknown, of
            the wrong kind or out of bounds.

    Warns:
        UserWarning: a newer minor version; the fields that are not known here are left out.
    """
    document = parse(data)
    newer = _is_newer_minor_version(document)  # first: a newer major version may compute its digest in another way
    check_digest(data, document)
    _rename_theta(document)
    if newer:
        warnings.warn(
            f"this ticket has schema {document['schema']}, newer than this hf_lottery knows: unknown fields are left "
            "out; `pip install --upgrade hf_lottery` reads them",
            stacklevel=4,
        )
    _check_fields(document, newer)
    return document


def _is_newer_minor_version(document: dict[str, Any]) -> bool:
    """Raise TicketError for a major version that is not read."""
    version = document.get("schema")
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,4}\.\d{1,4}", version):
        raise TicketError(f"ticket.json has schema {v.shown(version)}; it must be a version such as '{SCHEMA}'")
    major, minor = map(int, version.split("."))
    if major not in _NEWEST_MINOR:
        raise TicketError(
            f"this ticket has schema {version}, and this hf_lottery reads {' and '.join(map(str, _NEWEST_MINOR))}; "
            "try `pip install --upgrade hf_lottery`"
        )
    return minor > _NEWEST_MINOR[major]


def _rename_theta(document: dict[str, Any]) -> None:
    """In schema 1.x, the key `stored` of a tensor's record is called `theta`; all else is the same as in 2.0."""
    tensors = document.get("tensors")
    if not document["schema"].startswith("1.") or not isinstance(tensors, dict):
        return
    for record in tensors.values():
        if isinstance(record, dict) and "theta" in record and "stored" not in record:
            record["stored"] = record.pop("theta")


def _check_fields(document: dict[str, Any], newer: bool) -> None:
    """Check every field, in place; under a newer minor version, fields that are not known are removed."""
    for key in [key for key in document if key not in FIELDS]:
        if not newer:
            raise TicketError(f"ticket.json has the field {v.shown(key)}, which schema {SCHEMA} does not know")
        del document[key]
    for key, check in FIELDS.items():
        required = key in REQUIRED
        if key in document:
            try:
                check(document[key], key)
            except TicketError:
                if required or not newer:
                    raise
                del document[key]  # its form is of the newer version
        elif required:
            raise TicketError(f"ticket.json has no field '{key}'; it is damaged, or not from a ticket")


def _tensor(value: Any, where: str) -> None:
    """A tensor's record; `kept` and `sha256` must be there where `stored` needs them."""
    _TENSOR(value, where)
    stored, numel = value["stored"], math.prod(value["shape"])
    _SIZE(numel, f"{where}.shape")
    if "kept" in value or stored == "survivors":
        v.integer(0, numel)(value.get("kept"), f"{where}.kept")
    if stored in ("base", "frozen"):
        _HASH(value.get("sha256"), f"{where}.sha256")
    if stored in ("frozen", "derived") and "kept" in value:
        v.fail(where, stored, "base, survivors or dense, because it has a mask")


def _result_line(value: Any, where: str) -> None:
    """A line of results.jsonl: fields of RESULT_VALUES, and any others with numbers."""
    if not isinstance(value, dict) or len(value) > 128 or not value.keys() >= RESULT_KEYS:
        v.fail(where, value, f"an object of at most 128 keys, {', '.join(sorted(RESULT_KEYS))} among them")
    for key, item in value.items():
        _METRIC(key, where)
        RESULT_VALUES.get(key, v.number)(item, f"{where}.{key}")
    if OF_RECIPE in value and USED not in value:
        v.fail(where, value.get(OF_RECIPE), f"an object with {USED}, because it has {OF_RECIPE}")


_NAME = v.matches(NAME, "the name of a parameter: letters, digits, and _ . : / -")
_HASH = v.matches(r"[0-9a-f]{64}", "64 hexadecimal digits, in lower case")
_HUB_ID = v.matches(HUB_ID, "a Hub id such as you/name")
_METRIC = v.matches(r"[A-Za-z][A-Za-z0-9_.@-]{0,63}", "a metric's name: letters, digits and _ . @ -")
_SIZE = v.integer(0, _COUNT)
_DENSITIES = v.mapping(_NAME, v.list_of(_SIZE, 2), 1 << 16)  # name -> [kept, all]
RESULT_KEYS = {"replicate", "round", "control", "density"}
RESULT_VALUES: dict[str, v.Check] = {
    "control": v.one_of(("ticket", *CONTROLS)),
    "replicate": _SIZE,
    "round": _SIZE,
    "sample": _SIZE,
    "density": v.share,
    USED: v.rate,
    OF_RECIPE: v.rate,
    "fingerprint": v.optional(_HASH),
    "densities": v.optional(_DENSITIES),
    "metric": v.optional(_METRIC),
    "greater_is_better": v.optional(v.boolean),
    "diverged": v.optional(v.record({"step": _SIZE, "tensor": v.optional(_NAME)}, required=("step",))),
}
_TENSOR = v.record(
    {
        "shape": v.list_of(_SIZE, 8),
        "dtype": v.one_of(DTYPES),
        "stored": v.one_of(STORED),
        "kept": _SIZE,
        "sha256": _HASH,
        "sha256_rewound": _HASH,
    },
    required=("shape", "dtype", "stored"),
)
_GROUP = v.record(
    {
        "name": v.matches(rf"|{NAME.pattern}", "the name of a module or parameter, or nothing"),
        "why": v.one_of(REASONS),
        "count": _SIZE,
    },
    required=("name", "why", "count"),
)
_COVERAGE = v.record(
    {"prunable": _SIZE, "trained": v.integer(1, _COUNT), "frozen": _SIZE, "left_out": v.list_of(_GROUP, 64)},
    required=("prunable", "trained", "frozen", "left_out"),
)
_FILE = v.record({"bytes": v.integer(0, 1 << 44), "sha256": _HASH}, required=("bytes", "sha256"))

_LORA_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# the fields of a LoraConfig that build the same adapter again
LORA_FIELDS: dict[str, v.Check] = {
    "r": v.integer(1, 1 << 20),
    "lora_alpha": v.number,
    "lora_dropout": v.number,
    "use_rslora": v.boolean,
    "use_dora": v.boolean,
    "bias": v.one_of(("none", "all", "lora_only")),
    "task_type": v.optional(v.one_of(_LORA_TASKS)),
    "target_modules": v.optional(v.list_of(_NAME, 1 << 16)),
    "modules_to_save": v.optional(v.list_of(_NAME, 1 << 16)),
    "rank_pattern": v.mapping(_NAME, v.integer(1, 1 << 20), 1 << 16),
    "alpha_pattern": v.mapping(_NAME, v.number, 1 << 16),
}

# the fields of a ticket's `info`, all of them optional: where the ticket comes from, and its results
INFO_FIELDS: dict[str, v.Check] = {
    "base_model": v.optional(_HUB_ID),
    "base_revision": v.optional(v.matches(r"[0-9a-f]{40}", "a commit: 40 hexadecimal digits")),
    "task": v.optional(v.one_of(TASKS)),
    "config": v.optional(config_object),
    "lora": v.optional(v.record(LORA_FIELDS, required=("r",))),
    "criterion": v.matches(CRITERION_NAME, "the name of a criterion or of a function: letters, digits and _"),
    "scope": v.one_of(SCOPES),
    "pattern": v.matches("|".join(PATTERNS).replace("n:m", r"\d{1,3}:\d{1,3}"), f"one of {', '.join(PATTERNS)}"),
    "retraining": v.one_of(RETRAINING),
    "rewind_optimizer": v.one_of(REWIND_OPTIMIZERS),  # this and the next since 2.1; a ticket without them is of the
    "data_order": v.one_of(DATA_ORDERS),  # defaults, state and replay
    "start_from": v.one_of(START_FROM),  # this and coverage since 2.2; a ticket without it is of the default, dense
    "coverage": v.optional(_COVERAGE),
    "num_rounds": v.integer(0, 10**6),
    "pruning_rate": v.number,
    "seeds": v.list_of(v.integer(-(1 << 63), 1 << 64), 4096),
    "versions": v.mapping(v.one_of(PACKAGES), v.matches(r"[0-9A-Za-z.+!-]{1,64}", "a version"), 32),
    "densities": v.list_of(_DENSITIES, 4096),
    "results": v.list_of(_result_line, 1 << 16),
    "recipe": v.optional(v.text(1 << 18)),
    "datasets": v.list_of(_HUB_ID, 64),
    "license": v.optional(v.matches(r"[a-z0-9][a-z0-9.+-]{0,63}", "a Hub licence id such as apache-2.0")),
}

REQUIRED: dict[str, v.Check] = {
    "format": v.one_of(("hf_lottery_ticket",)),
    "schema": v.text(9),
    "mask_true_means": v.one_of(("kept",)),
    "pruned_becomes": v.one_of(PRUNED_VALUES),
    "mask_encoding": v.one_of(ENCODINGS),
    "rewind_step": v.integer(0, _COUNT),
    "fingerprint": _HASH,
    "tensors": v.mapping(_NAME, _tensor, 1 << 18),
    "files": v.mapping(v.matches(FILES, "one of a ticket's own file names"), _FILE, 4096),
    "sha256": _HASH,
}
FIELDS = {**REQUIRED, **INFO_FIELDS}
