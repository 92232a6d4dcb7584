"""Controls: what a ticket is compared with. Each sets mask and weights of a trainer, which is trained afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_lottery.experiment.chains import continue_chain
from hf_lottery.experiment.dynamic import rigl, set_control, start_mask
from hf_lottery.experiment.redraw import redraw
from hf_lottery.layout import Network
from hf_lottery.mask import Mask
from hf_lottery.pruning.context import PruningContext
from hf_lottery.pruning.random_mask import random_mask_like, require_single_weights
from hf_lottery.pruning.selection.select import select
from hf_lottery.pruning.step import next_mask, score
from hf_lottery.random_state import derived_seed
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.training.search import Search
from hf_lottery.training.trainer import LotteryMixin


def random_reinit(trainer: LotteryMixin, number: int, seed: int) -> None:
    """The ticket's mask over freshly drawn weights, trained from step 0 (Frankle & Carbin 2019, section 2).

    They come from the distribution that the network's first weights came from; see `redraw`.
    """
    _start(trainer, Search(trainer).round_folder(number).mask(), _redrawn(trainer, seed), from_rewind_point=False)


def signed_reinit(trainer: LotteryMixin, number: int, seed: int) -> None:
    """Freshly drawn magnitudes with θ_k's signs under the ticket's mask (Zhou et al. 2019, section 4)."""
    mask, old = Search(trainer).round_folder(number).mask(), trainer.rewind_point.tensors
    new = _redrawn(trainer, seed).tensors
    signed = {name: new[name].abs() * old[name].sign() if name in mask else old[name] for name in old}
    _start(trainer, mask, RewindPoint(0, signed), from_rewind_point=False)


def random_mask(trainer: LotteryMixin, number: int, seed: int) -> None:
    """θ_k under a mask that keeps as many weights of every tensor as the ticket's, at random places.

    Where the pattern prunes neurons, heads, ranks, rows or n:m, these are at random places, and no single weights.
    With start_from zeros, the places are among those of round 0.
    """
    ticket_mask, generator = Search(trainer).round_folder(number).mask(), torch.Generator().manual_seed(seed)
    mask = random_mask_like(ticket_mask, trainer.model, trainer.lottery_config, generator, start_mask(trainer))
    _start(trainer, mask, trainer.rewind_point)


def shuffled_weights(trainer: LotteryMixin, number: int, seed: int) -> None:
    """The ticket's mask over its own surviving θ_k, exchanged at random within each tensor."""
    mask, generator = Search(trainer).round_folder(number).mask(), torch.Generator().manual_seed(seed)
    tensors = dict(trainer.rewind_point.tensors)
    for name in sorted(mask):
        tensors[name] = _shuffle_survivors(tensors[name], mask[name].cpu(), generator)
    _start(trainer, mask, RewindPoint(trainer.rewind_point.step, tensors))


def no_rewinding(trainer: LotteryMixin, number: int, seed: int, network: Network | None = None) -> None:
    """Iterative pruning with fine-tuning, whose every round stands on its own round before (Han et al. 2015).

    Its network of the round before (in round 1 the dense one) is pruned by its own trained weights. The survivors
    keep these, and are trained on at the last learning rate.
    """
    continue_chain(trainer, network or Network(0, number, "no_rewinding"), "fine_tuning")


def learning_rate_rewinding(trainer: LotteryMixin, number: int, seed: int, network: Network | None = None) -> None:
    """As `no_rewinding`, but trained with the learning-rate schedule of step k on (Renda et al. 2020)."""
    continue_chain(trainer, network or Network(0, number, "learning_rate_rewinding"), "learning_rate_rewinding")


def one_shot(trainer: LotteryMixin, number: int, seed: int) -> None:
    """θ_k under a mask from one pruning of the trained dense network, which keeps as many weights as the ticket.

    If whole groups are pruned (neurons, heads, ranks, rows, n:m), one pruning has the rates of all rounds together.
    """
    search, config = Search(trainer), trainer.lottery_config
    ticket_mask = search.round_folder(number).mask()
    search.load_trained(0)
    context = trainer.pruning_context()
    if (config.pattern, config.prune_embeddings) == ("weight", None):
        mask = _cut(context, ticket_mask)
    else:
        at_once = {name: 1 - (1 - rate) ** number for name, rate in context.rates.items()}
        config = replace(config, pruning_rate=1 - (1 - config.pruning_rate) ** number)
        mask = next_mask(replace(context, config=config, rates=at_once))
    _start(trainer, mask, trainer.rewind_point)


def _cut(context: PruningContext, like: Mask) -> Mask:
    """A mask of the highest scores of the current network. In each group it keeps as many weights as `like`.

    A group is a tensor; or, if scores are compared globally, all tensors of one rate.
    """
    config, rates = context.config, context.rates
    scores, key = score(context)
    groups: dict[str | float, list[str]] = {}
    for name in like:
        group = rates.get(name, config.pruning_rate) if config.scope == "global" else name
        groups.setdefault(group, []).append(name)
    tensors = {}
    for names in groups.values():
        alive = Mask({name: context.mask[name].to(like[name].device) for name in names})
        pruned = alive.count() - sum(int(like[name].sum()) for name in names)
        tensors.update(select({name: scores[name] for name in names}, alive, pruned, key=key))
    return Mask({name: tensors[name] for name in like})


# name -> (trainer, round, seed); those of layout.CHAINS also take `network`, which says which of the control's chains
# it is
CONTROLS: dict[str, Callable[..., None]] = {
    "random_reinit": random_reinit,
    "random_mask": random_mask,
    "no_rewinding": no_rewinding,
    "learning_rate_rewinding": learning_rate_rewinding,
    "one_shot": one_shot,
    "shuffled_weights": shuffled_weights,
    "signed_reinit": signed_reinit,
    "set": set_control,
    "rigl": rigl,
}


def require_possible(trainer: LotteryMixin, controls: Collection[str]) -> None:
    """Raise now, before a network is trained, the ValueError that one of these controls would raise for its model."""
    config = trainer.lottery_config
    if config.start_from == "zeros" and "random_mask" in controls:
        require_single_weights(config)
    if {"random_reinit", "signed_reinit"} & set(controls):
        _redrawn(trainer, seed=0)


def control_seed(seed: int, control: str, number: int, sample: int) -> int:
    """The seed of a control's own random draws: different for each control, the same on every machine."""
    return derived_seed(seed, control, number, sample) >> 1


def _redrawn(trainer: LotteryMixin, seed: int) -> RewindPoint:
    return redraw(trainer.model, seed, trainer.model_factory, trainer.mask)


def _start(trainer: LotteryMixin, mask: Mask, weights: RewindPoint, **how: Any) -> None:
    """Give the trainer a mask and weights. `how`: arguments of `LotteryMixin.restart` for its next training."""
    weights.restore(trainer.model)
    trainer.mask = mask
    trainer.restart(**how)


def _shuffle_survivors(value: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
    value = value.clone()
    survivors = value[kept]
    value[kept] = survivors[torch.randperm(survivors.numel(), generator=generator)]
    return value
