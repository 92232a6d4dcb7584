"""A model's shape without its memory: built on the meta device, and given up as soon as it is too large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

Built = TypeVar("Built", bound=nn.Module)
MOST_BYTES = 1 << 46  # 64 TiB
MOST_TENSORS = 20_000  # each takes time and memory for its name and module, also without its values


class TooLarge(ValueError):
    """A model has more parameters than any machine takes."""


def build_on_meta(make: Callable[[], Built], what: str) -> Built:
    """What `make` builds, with parameters that have names, shapes and dtypes, but no values.

    Args:
        make: builds the model.
        what: names the model in error messages.

    Raises:
        ValueError: the model cannot be built, or has more than MOST_TENSORS parameters or MOST_BYTES bytes.
    """
    try:
        with torch.device("meta"), _counted(what):
            return make()
    except TooLarge:
        raise
    except Exception as error:  # of hundreds of model classes, each refuses a wrong shape in its own way
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{what} cannot be built from this recipe ({type(error).__name__}: {said})") from error


@contextmanager
def _counted(what: str) -> Iterator[None]:
    tensors = size = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, size
        if parameter is None:
            return
        tensors, size = tensors + 1, size + parameter.numel() * parameter.element_size()
        if size > MOST_BYTES:
            raise TooLarge(f"{what} does not fit: it has more than {MOST_BYTES >> 40} TiB of weights: make it smaller")
        if tensors > MOST_TENSORS:
            raise TooLarge(
                f"{what} does not fit: it has more than {MOST_TENSORS:,} parameter tensors: make it smaller"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
