"""`prune` for weights that are whole on every process, and for weights that FSDP2 has sharded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_lottery.distributed.processes import full, local, shard_like
from hf_lottery.mask import Mask
from hf_lottery.pruning.selection.select import prune as prune_tensors
from hf_lottery.pruning.selection.shards import Shards


def prune(scores: Mapping[str, Tensor], alive: Mask, **how) -> Mask:
    """`hf_lottery.pruning.selection.select.prune`, of whole tensors or of DTensors; the same mask either way.

    With DTensors every process reads its own shards. Counts are added up over the processes and the new mask's bits
    are gathered; scores and weights are not communicated. All processes must call it together.

    Args:
        scores: name -> score, all whole, or all DTensors split alike along dimension 0.
        alive: the whole mask, on every process.
        how: `rate`, `rates`, `scope` and `key`, as in `select.prune`.

    Returns:
        The whole new mask, on every process; packed where scores are sharded, since a process then only uses its part.
    """
    if not any(isinstance(score, DTensor) for score in scores.values()):
        return prune_tensors(scores, alive, **how)
    mine = prune_tensors(
        {name: local(score.detach()) for name, score in scores.items()},
        Mask({name: shard_like(kept, scores[name]).clone() for name, kept in alive.items()}),
        shards=Shards.of(scores),
        **how,
    )
    return Mask.packing((name, _gather(mine[name], scores[name])) for name in alive)


def _gather(kept: Tensor, like: DTensor) -> Tensor:
    """This process's shard of a mask -> the whole of it, on the CPU."""
    whole = DTensor.from_local(
        kept.to(like.device, torch.uint8), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return full(whole).cpu().bool()
