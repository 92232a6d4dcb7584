"""Small checks from which the schema of ticket.json is built. Each raises TicketError, with the field and its value.

They stop at the first wrong value and bound every list and object, so a wrong file of 64 MB is refused at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from hf_lottery.ticket.document import TicketError

Check = Callable[[Any, str], None]  # (value, the name of its field)

# printed, these change what a terminal shows, or cannot be printed at all
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def fail(where: str, value: Any, allowed: str) -> NoReturn:
    """Raise TicketError: the field `where` has this value, and must be what `allowed` says."""
    raise TicketError(f"ticket.json: '{where}' is {shown(value)}; it must be {allowed}")


def shown(value: Any) -> str:
    """A stranger's value for an error message: short, and without control characters."""
    return ascii(value)[:80]


def accepts(check: Check, value: Any) -> bool:
    """Whether `check` passes."""
    try:
        check(value, "value")
    except TicketError:
        return False
    return True


def one_of(choices: Iterable[str]) -> Check:
    """A text from `choices`."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in choices:
            fail(where, value, "one of " + ", ".join(choices))

    return check


def matches(pattern: str | re.Pattern[str], allowed: str) -> Check:
    """A text that `pattern` matches as a whole; `allowed` says in words what that is."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            fail(where, value, allowed)

    return check


def text(limit: int) -> Check:
    """Any text of at most `limit` characters, none of them a control character."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > limit or _CONTROL_CHARACTERS.search(value):
            fail(where, value, f"a text of at most {limit} characters, none of them a control character")

    return check


def integer(low: int, high: int) -> Check:
    """A whole number from `low` to `high`; not a bool."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            fail(where, value, f"a whole number from {low} to {high}")

    return check


def number(value: Any, where: str) -> None:
    """A number or null."""
    if value is not None and type(value) not in (int, float):
        fail(where, value, "a number or null")


def rate(value: Any, where: str) -> None:
    """A learning rate: a number from 0 to 10^12."""
    if type(value) not in (int, float) or not 0 <= value <= 1e12:
        fail(where, value, "a number from 0 to 10^12")


def share(value: Any, where: str) -> None:
    """A number from 0 to 1."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        fail(where, value, "a number from 0 to 1")


def boolean(value: Any, where: str) -> None:
    """True or false."""
    if type(value) is not bool:
        fail(where, value, "true or false")


def optional(inner: Check) -> Check:
    """Null, or what `inner` accepts."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def list_of(inner: Check, limit: int) -> Check:
    """A list of at most `limit` items."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) > limit:
            fail(where, value, f"a list of at most {limit}")
        for index, item in enumerate(value):
            inner(item, f"{where}[{index}]")

    return check


def mapping(key: Check, value: Check, limit: int) -> Check:
    """An object of at most `limit` keys of any names that `key` accepts."""

    def check(found: Any, where: str) -> None:
        if not isinstance(found, dict) or len(found) > limit:
            fail(where, found, f"an object of at most {limit} keys")
        for name, item in found.items():
            key(name, where)
            value(item, f"{where}.{name}")

    return check


def record(fields: dict[str, Check], required: Iterable[str]) -> Check:
    """An object that has the keys `required`, and no others than those of `fields`."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict) or not set(required) <= value.keys() <= fields.keys():
            fail(where, value, f"an object with {', '.join(required)}, and otherwise only {', '.join(fields)}")
        for name, item in value.items():
            fields[name](item, f"{where}.{name}")

    return check
