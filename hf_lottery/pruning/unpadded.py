"""Batches without their padding: the examples of one length together, each cut to its own positions.

A layer sees padding as it sees tokens. What an example's activations would be without padding is known for every layer
(also behind a reshape, a router or a pooler) only if the example is run without padding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # a label that no loss counts
Batch = Mapping[str, Any]


def unpadded(batch: Any, encoder_decoder: bool = False) -> Iterator[Any]:
    """The same examples in batches without padding; the batch itself if it has none.

    Padding is what `attention_mask` and `decoder_attention_mask` give 0. Without the second, labels that are ignored
    at the end of an encoder-decoder's row are padding. In packed rows, which have `position_ids` and no mask, it is a
    last sequence without a label. Examples that are padding alone are left out.

    Args:
        batch: keyword arguments of a model's forward. Anything else is returned as it is.
        encoder_decoder: whether `labels` belong to a decoder, whose positions are not those of the inputs.

    Raises:
        ValueError: there is padding, and nothing says where it is in the inputs.
    """
    kept = _kept_positions(batch, encoder_decoder) if isinstance(batch, Mapping) else {}
    kept = {side: mask for side, mask in kept.items() if not mask.all()}
    if not kept:
        yield batch
        return
    cut = {side: _cut_inputs(batch, side, mask, encoder_decoder) for side, mask in kept.items()}
    rows_of = defaultdict(list)
    for row, lengths in enumerate(zip(*(mask.sum(1).tolist() for mask in kept.values()), strict=True)):
        if all(lengths):
            rows_of[lengths].append(row)
    for lengths, rows in sorted(rows_of.items()):
        part = {name: value[rows] if _has_rows(value) else value for name, value in batch.items()}
        for (side, mask), length in zip(kept.items(), lengths, strict=True):
            for name in cut[side]:
                value = batch[name][rows]
                part[name] = value[mask[rows].to(value.device)].unflatten(0, (len(rows), length))
        yield part


def _kept_positions(batch: Batch, encoder_decoder: bool) -> dict[str, Tensor]:
    """Side -> bool [examples, positions], True where there is no padding; the sides are "" and "decoder_"."""
    result = {}
    for side in ("", "decoder_"):
        mask = batch.get(f"{side}attention_mask")
        if mask is None:
            continue
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            shape = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise ValueError(
                f"criterion wanda leaves padding out, and the batch's {side}attention_mask is {shape}, which does not "
                "say which positions are padding: give one of shape (examples, positions)"
            )
        result[side] = mask != 0
    labels = batch.get("labels")
    if _are_positions(labels):
        if encoder_decoder and "decoder_" not in result:
            result["decoder_"] = _up_to_last(labels != IGNORED)
        elif not encoder_decoder and "" not in result and "position_ids" in batch:
            result |= _kept_of_packed(batch["position_ids"], labels)
    return result


def _kept_of_packed(positions: Any, labels: Tensor) -> dict[str, Tensor]:
    if not isinstance(positions, Tensor) or positions.shape != labels.shape:
        return {}
    starts = (positions == 0).long().cumsum(1)
    last = starts == starts[:, -1:]
    is_padding = last & (starts > 1) & ~(last & (labels != IGNORED)).any(1, keepdim=True)
    return {"": ~is_padding}


def _up_to_last(chosen: Tensor) -> Tensor:
    """True up to the last True of each row; all True in a row without one."""
    return chosen.flip(1).cummax(1).values.flip(1) | ~chosen.any(1, keepdim=True)


def _cut_inputs(batch: Batch, side: str, mask: Tensor, encoder_decoder: bool) -> list[str]:
    """The names of the tensors that have the positions of this side's mask.

    Raises:
        ValueError: the rows of a tensor are not the batch's examples, or no input has these positions.
    """
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.dim() and len(value) != len(mask):
            raise ValueError(
                f"criterion wanda runs each example without its padding, and '{name}' of shape {tuple(value.shape)} "
                f"does not have a row for each of the batch's {len(mask)}: use batches without padding "
                "(per_device_train_batch_size 1), or another criterion"
            )
    names = [
        name
        for name, value in batch.items()
        if _side_of(name, encoder_decoder) == side
        and _has_rows(value)
        and value.dim() > 1
        and value.shape[1] == mask.shape[1]
        and not (name == "labels" and not _are_positions(value))
        and not name.startswith("pixel_")
    ]
    if not set(names) - {"attention_mask", "decoder_attention_mask"} - (set() if encoder_decoder else {"labels"}):
        raise ValueError(
            f"criterion wanda runs each example without its padding, and no input has the {mask.shape[1]} positions "
            f"of the batch's {side}attention_mask, which marks padding: use batches without, or another criterion"
        )
    return names


def _side_of(name: str, encoder_decoder: bool) -> str:
    return "decoder_" if name.startswith("decoder_") or (encoder_decoder and name == "labels") else ""


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _are_positions(labels: Any) -> bool:
    """Whether these are labels of tokens: int [examples, positions]."""
    return isinstance(labels, Tensor) and labels.dim() == 2 and not torch.is_floating_point(labels)
