"""The dense network, or a ticket, at another learning rate than the recipe's own, at which the search is."""

from __future__ import annotations

from hf_lottery.training.search import Search
from hf_lottery.training.trainer import LotteryMixin


def ticket_again(trainer: LotteryMixin, number: int) -> None:
    """Prepare a trainer that has another learning rate for the network of round `number`, as `Search.run_round` does.

    Its mask is that of the ticket of the round, which the search found at the recipe's own learning rate. It starts as
    that ticket did: from θ_0, or with another `retraining` from the trained weights of the round before.

    Args:
        trainer: fresh, with the output folder of the replicate.
        number: the round; 0 is the dense network.

    Raises:
        DivergedError: the round before diverged.
        FileNotFoundError: the ticket of the round is not finished.
    """
    search = Search(trainer)
    from_start = number == 0 or trainer.lottery_config.retraining == "weight_rewinding"
    if from_start:
        search.enter_round(number)
    else:
        search.load_trained(number - 1)
        trainer.current_round = number
    if number == 0:
        trainer.replay.last_lr_factor = None  # this training finds its own
    trainer.mask = search.round_folder(number).mask()
    trainer.rewind("weight_rewinding" if from_start else None)
