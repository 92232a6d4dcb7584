"""Access tokens and passwords: found by the name of their key or by their form, and left out of what is kept or shown.

A recipe may hold one (`training.hub_token`), and people mistype keys and paste addresses with a password in them, so
everything that is printed, stored or published goes through here.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

REDACTED = "<redacted>"

_NAMES = ("token", "password", "passwd", "passphrase", "secret", "credential", "apikey", "authorization")
_PAIRS = ("api key", "access key", "private key", "auth key")
# words beside `token` in names that are about a tokenizer's tokens, such as `eos_token`, `token_type_ids`
_BEFORE = frozenset(
    [
        "bos",
        "eos",
        "pad",
        "unk",
        "sep",
        "cls",
        "mask",
        "special",
        "additional",
        "image",
        "audio",
        "video",
        "prefix",
        "suffix",
        "middle",
        "decoder",
        "start",
        "end",
        "begin",
        "forced",
        "stop",
        "max",
        "min",
        "num",
        "new",
        "per",
        "input",
        "output",
        "context",
        "vision",
        "boi",
        "eoi",
        "bot",
        "eot",
        "next",
        "last",
        "first",
        "label",
    ]
)
_AFTER = frozenset(
    [
        "2",
        "id",
        "ids",
        "type",
        "types",
        "length",
        "lengths",
        "count",
        "counts",
        "index",
        "indices",
        "limit",
        "size",
        "dim",
        "fraction",
        "ratio",
        "rate",
        "classification",
        "embedding",
        "embeddings",
        "dropout",
        "level",
        "labels",
    ]
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# tokens that their services mark with a prefix
_MARKED = re.compile(
    r"(?<![\w-])(?:hf_\w+|api_org_\w+|gh[pousr]_\w{16,}|github_pat_\w{16,}|AKIA[A-Z0-9]{12,}|glpat-[\w-]{16,}"
    r"|sk-[\w-]{16,}|xox[a-z]-[\w-]{10,}|AIza[\w-]{30,}|pypi-[\w-]{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
# Names such as hf_runs and hf_lenet300 begin with hf_ too. A token is long, or mixes capitals, small letters and digits,
# or is in capitals (in examples), or says what it is.
_HUB_TOKEN = re.compile(r"hf_(?:[A-Za-z0-9]{16,}|(?=.*[A-Z])(?=.*[a-z])(?=.*\d)[A-Za-z0-9]{9,}|[A-Z0-9_]{4,})")
_SAYS_SO = re.compile(r"hf_\w*(?:token|secret|passw)\w*")
_USER_OF_ADDRESS = re.compile(r"(?<=://)[^/\s'\"@]*@")  # user:password@
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[^\s'\",;]+", re.I)
# `key=`, `key: `, `'key': ` and, in our own sentences, `key is `
_KEY = re.compile(
    r"(?<![\w.-])(?P<key>[A-Za-z_][\w.-]*)['\"]?(?:\s*=\s*|\s*:\s*(?!\w+ says\b)|\s+is\s+(?!not\b|missing\b|there\b))"
)
_VALUE = re.compile(r"\"[^\"\n]*\"?|'[^'\n]*'?|\[[^\]\n]*\]?|\{[^}\n]*\}?|[^\s,;&)'\"}\]]+")
_NO_SECRETS = ("none", "null", "true", "false", "~", REDACTED, "…")


class UnsavedToken(str):
    """An access token that can be used like any text, and that pickle writes as None, so that it is not in any file."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: int) -> tuple:
        return type(None), ()

    def __copy__(self) -> UnsavedToken:
        return self

    def __deepcopy__(self, memo: dict) -> UnsavedToken:
        return self


def is_secret_key(key: str) -> bool:
    """Whether a key of this name, also a mistyped one, holds a token or a password: `hub_token`, `training.hub_tokn`."""
    return bool(_secret_names(key))


def without_secrets(value: Any) -> Any:
    """Plain values (dicts, lists, texts, numbers) without the entries of secret keys, and with redacted texts."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not _is_secret(str(key), item)}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def redacted(text: str) -> str:
    """`text` with each token or password replaced: after a secret key, in an address, or of a known form."""
    text = _USER_OF_ADDRESS.sub(f"{REDACTED}@", text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    text = _MARKED.sub(_without_token, text)
    parts, position = [], 0
    while found := _KEY.search(text, position):
        parts.append(text[position : found.end()])
        position = found.end()
        value = _VALUE.match(text, position) if is_secret_key(found["key"]) else None
        if value and value[0].strip("'\"").lower() not in _NO_SECRETS:
            parts.append(REDACTED)
            position = value.end()
    return "".join([*parts, text[position:]])


def _without_token(found: re.Match[str]) -> str:
    word = found[0]
    if not word.startswith("hf_") or _HUB_TOKEN.fullmatch(word):
        return REDACTED
    is_key = re.match(r"\s*[=:]", found.string[found.end() : found.end() + 8])  # as in hf_token=…
    return REDACTED if _SAYS_SO.fullmatch(word) and not is_key else word


def redacted_word(word: str) -> str:
    """A word of the command line; all that follows the `=` of a secret key is replaced."""
    return f"{word.partition('=')[0]}={REDACTED}" if sets_secret(word) else redacted(word)


def sets_secret(word: str) -> bool:
    """Whether a word of the command line is `KEY=VALUE` with a secret key."""
    key, equals, _ = word.partition("=")
    return bool(equals) and is_secret_key(key)


def _is_secret(key: str, value: Any) -> bool:
    """A text under a secret key; or a number, but not under a name with `token`, which may be of a model's config."""
    if value is None or isinstance(value, bool):
        return False
    names = _secret_names(key)
    return bool(names) if _has_text(value) else bool(names - {"token"})


def _has_text(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_has_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


@lru_cache(4096)
def _secret_names(key: str) -> frozenset[str]:
    """Those of _NAMES and _PAIRS that a dotted key has in it."""
    found = set()
    for part in key.split("."):
        words = [word.lower() for word in _WORD.findall(part)]
        found |= {f"{first} {second}" for first, second in zip(words, words[1:], strict=False)} & set(_PAIRS)
        for position, word in enumerate(words):
            name = _secret_name(word)
            if name and not (name == "token" and _is_of_text(words, position)):
                found.add(name)
    return frozenset(found)


@lru_cache(4096)
def _secret_name(word: str) -> str | None:
    """The one of _NAMES that this word is, or is mistyped from."""
    if word == "tokens" or word.startswith("tokeni") or len(word) > 20:
        return None
    near = get_close_matches(word, _NAMES, n=1, cutoff=0.75)
    return near[0] if near else None


def _is_of_text(words: list[str], position: int) -> bool:
    before, after = words[:position], words[position + 1 :]
    return bool(before and before[-1] in _BEFORE) or bool(after and after[0] in _AFTER)
