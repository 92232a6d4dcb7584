"""What a trainer begins with: the weights to prune, their rates and the first mask; what a pruning could not use is
refused here, before a step is trained, and what the mask covers is said.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

from torch import nn
from transformers import Trainer

from hf_lottery.config import LotteryConfig
from hf_lottery.distributed.finite import first_not_finite, not_finite
from hf_lottery.distributed.processes import first_of_ranks, full, is_main, own_part
from hf_lottery.mask import Mask
from hf_lottery.pruning.coverage import Coverage, coverage
from hf_lottery.pruning.reparametrised import reparametrised
from hf_lottery.pruning.step import check_network
from hf_lottery.pruning.targets import match_rates, prunable
from hf_lottery.pruning.untrained import refuse_untrained_start
from hf_lottery.pruning.zeros import mask_of_zeros, zero_counts
from hf_lottery.ticket.ticket import Ticket

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """What a trainer begins with.

    Args:
        rates: parameter name -> its own pruning rate, where it is not `pruning_rate`.
        mask: the first mask.
        coverage: what it is over.
    """

    rates: dict[str, float]
    mask: Mask
    coverage: Coverage


def begin(trainer: Trainer, config: LotteryConfig, ticket: Ticket | None) -> Beginning:
    """Decide what `trainer` begins with, and say it once for its output folder.

    Args:
        trainer: its model is whole, and its weights are those that training starts from.
        config: how to search.
        ticket: has been applied to the model; its mask is the first one. None: a search begins.

    Raises:
        ValueError: a setting does not fit the model, or the model's weights cannot be pruned or trained.
    """
    model = trainer.model
    _refuse_not_finite(model)
    targets = _targets(model, config, ticket)
    names = [name for name, _ in model.named_parameters()]
    rates = match_rates(config.pruning_rates, tuple(targets), others=names)
    check_network(model, config, targets, rates)
    refuse_untrained_start(targets, config, rates)
    if ticket is not None:
        mask = ticket.mask
    elif config.start_from == "zeros":
        mask = mask_of_zeros({name: full(weight) for name, weight in targets.items()})
    else:
        mask = Mask.ones(targets.items())
    covered = coverage(model, targets, config.target_modules, config.exclude_modules)
    if is_main():
        _say(covered, trainer.args.output_dir)
        if ticket is None:
            _say_zeros(targets, mask, config, trainer.args.output_dir)
    return Beginning(rates, mask, covered)


def _targets(model: nn.Module, config: LotteryConfig, ticket: Ticket | None) -> dict[str, nn.Parameter]:
    if ticket is None:
        return prunable(model, config.target_modules, config.exclude_modules, config.prune_embeddings)
    if config.start_from != "dense":
        raise ValueError(
            f"lottery_config has start_from {config.start_from!r}, and a ticket brings its own mask: leave one out"
        )
    for name, weight in reparametrised(model).items():
        if name in ticket.mask:
            raise ValueError(weight.refusal())
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in ticket.mask}


def _refuse_not_finite(model: nn.Module) -> None:
    """Raise a ValueError on all ranks for a weight that is nan or infinite before training."""
    parameters = dict(model.named_parameters())
    found = None
    if bad := not_finite(parameters):
        place, value = first_not_finite(own_part(parameters[bad[0]]).detach())
        found = (
            f"the weight {place} of '{bad[0]}' is {value:g} before training, so that no loss of this network would be "
            "a number: load it again, or initialise it"
        )
    if (found := first_of_ranks(found)) is not None:
        raise ValueError(found)


def _say(covered: Coverage, output_dir: str) -> None:
    text = f"{str(covered)[0].upper()}{str(covered)[1:]}."
    _say_once(logging.INFO if covered.is_usual else logging.WARNING, text, output_dir)


def _say_zeros(targets: dict[str, nn.Parameter], mask: Mask, config: LotteryConfig, output_dir: str) -> None:
    if config.start_from == "zeros":
        pruned, total = mask.numel() - mask.count(), mask.numel()
        text = (
            f"start_from zeros: {pruned:,} of {total:,} prunable weights ({pruned / total:.2%}) are zero in the model "
        )
        _say_once(logging.WARNING, f"{text}and stay so; round 0 starts at density {mask.density():.4f}.", output_dir)
        return
    if not (counts := zero_counts({name: full(weight) for name, weight in targets.items()})):
        return
    zeros, total = sum(counts.values()), mask.numel()
    text = (
        f"{zeros:,} of {total:,} prunable weights ({zeros / total:.2%}) are exactly zero before training, such as "
        f"{counts[next(iter(counts))]:,} in '{next(iter(counts))}', and training will fill them: if the model is "
        'meant to stay sparse, give LotteryConfig(start_from="zeros") (in a recipe lottery.start_from: zeros).'
    )
    _say_once(logging.WARNING, text, output_dir)


@cache
def _say_once(level: int, text: str, output_dir: str) -> None:
    """Log `text`, once for an output folder: an experiment makes a trainer for each of its networks."""
    _log.log(level, "%s", text)
