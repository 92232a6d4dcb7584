"""Whether a ticket belongs to a model: names, shapes, dtypes and hashes, checked before any weight is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hf_lottery.distributed.processes import named_tensors
from hf_lottery.ticket.base_model import dtype_name, tensor_sha256
from hf_lottery.ticket.document import TicketError


def require_names_and_shapes(model: nn.Module, shapes: Mapping[str, Iterable[int]], base_model: str | None) -> None:
    """Raise TicketError, with the name of the first wrong tensor, unless `model` has the ticket's tensors and trains
    no others.

    Args:
        model: the model that the ticket is applied to.
        shapes: name -> shape, of every tensor that the ticket rewinds or needs unchanged.
        base_model: what the ticket says it was found on, for the message.
    """
    state = named_tensors(model)
    hint = f"the ticket was found on {base_model}" if base_model else "build the model as the ticket's card shows"
    for name, tensor in state.items():
        if name in shapes:
            _require_shape(name, tensor, tuple(shapes[name]), hint)
        elif tensor.requires_grad:
            raise TicketError(f"this model trains '{name}', which the ticket does not know; freeze it, or: {hint}")
    for name in shapes:
        if name not in state:
            raise TicketError(f"the ticket holds '{name}', which is not a weight or buffer of this model; {hint}")


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...], hint: str) -> None:
    if tuple(tensor.shape) != shape:
        raise TicketError(f"'{name}' has shape {tuple(tensor.shape)} in this model and {shape} in the ticket; {hint}")
    if tensor.is_meta:
        raise TicketError(f"'{name}' is on the meta device, without values; load the model's weights first")


def require_dtypes(model: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Raise TicketError unless the tensors of `model` have these dtypes: stored values are not cast.

    Args:
        model: the model that the ticket is applied to; `require_names_and_shapes` has passed.
        dtypes: name -> dtype, such as `float32`.
    """
    state = named_tensors(model)
    for name, dtype in dtypes.items():
        if dtype_name(state[name]) != dtype:
            raise TicketError(
                f"'{name}' is {dtype_name(state[name])} in this model and {dtype} in the ticket: "
                f"make the model in {dtype}"
            )


def require_base_tensors(
    model: nn.Module, base_tensors: Mapping[str, Mapping[str, Any]], base_model: str | None
) -> None:
    """Raise TicketError, with the name of the first that differs, unless `model` has the ticket's base tensors.

    They are compared bit for bit. A tensor may be θ_k or, so that a ticket can be applied twice, θ_k ⊙ m.

    Args:
        model: the model that the ticket is applied to; `require_names_and_shapes` has passed.
        base_tensors: name -> record with `dtype`, `sha256` (of θ_k) and, where it is masked, `sha256_rewound`.
        base_model: what the ticket says it was found on, for the message.
    """
    source = base_model or "the model that the ticket was found on"
    for name, tensor in named_tensors(model).items():
        entry = base_tensors.get(name)
        if entry is None:
            continue
        if dtype_name(tensor) != entry["dtype"]:
            raise TicketError(
                f"'{name}' is {dtype_name(tensor)} in this model and {entry['dtype']} in the ticket; "
                f"load {source} with dtype={entry['dtype']}"
            )
        if tensor_sha256(tensor) not in (entry["sha256"], entry.get("sha256_rewound")):
            raise TicketError(
                f"'{name}' is the first tensor that differs from what the ticket was found on; "
                f"load {source} again, at the ticket's base_revision"
            )
