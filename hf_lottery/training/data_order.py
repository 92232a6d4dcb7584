"""DataOrder: which random numbers a round has, and so which data order and dropout (LotteryConfig.data_order)."""

from __future__ import annotations

from accelerate.data_loader import SeedableRandomSampler, get_sampler
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from hf_lottery.config import LotteryConfig
from hf_lottery.random_state import derived_seed
from hf_lottery.training.masking import Masking
from hf_lottery.training.replay import FRESH, Order

_OR_REPLAY = "or data_order replay"


def order_of_round(seed: int, data_seed: int | None, number: int) -> Order:
    """The seeds of round `number` under `data_order: fresh`: the same on every rank, on every machine.

    They are hashes, so far apart: the sampler adds the number of the epoch to its seed.

    Args:
        seed, data_seed: `args.seed` and `args.data_seed`. Trainings with one data_seed have one order in every round.
        number: the round, 1 or more.
    """
    of_all, of_data = seed, seed if data_seed is None else data_seed
    return Order(*(derived_seed(first, "data_order", number) >> 1 for first in (of_all, of_data)))


class DataOrder(TrainerCallback):
    """Chooses the random numbers of each training, and refuses a data order that they would not decide.

    A training that starts as Trainer starts, and round 0, have those of the first training. So has every round under
    `replay`. Under `fresh`, round r has those of a seed from (args.seed, r): the sampler's order, what workers and
    transforms draw from the global generators, and dropout. At k > 0 the pass over the data in which step k is goes on
    at the same position of another order, so in that pass an example may come twice or not at all; in every other
    pass each example comes once.

    Args:
        trainer: a LotteryMixin.
        masking: has its mask, the first one.

    Source: Frankle et al. 2020 (arXiv 1912.05671), section 2: SGD noise u is data order and augmentation. Their code
    (open_lth) shuffles anew in each training and goes on at the position of step k.
    """

    def __init__(self, trainer: Trainer, masking: Masking):
        self.trainer, self.masking = trainer, masking
        self._first_density = masking.density

    def choose(self) -> None:
        """Set the seeds of the training that starts now; those of a checkpoint that it continues from are its own.

        Raises:
            ValueError: the mask was changed, and nobody has said which round it is.
        """
        trainer, replay = self.trainer, self.trainer.replay
        if trainer.checkpoints.order is not None:
            replay.set_order(trainer.checkpoints.order)
            return
        if replay.order is not None or replay.start == FRESH or trainer.lottery_config.data_order == "replay":
            return
        if trainer.current_round > 0:
            replay.set_order(order_of_round(trainer.args.seed, trainer.args.data_seed, trainer.current_round))
        elif self.masking.density != self._first_density:
            raise ValueError(
                f"data_order is fresh and the mask has changed (density {self.masking.density:g}), but current_round "
                "is 0, whose data order is that of the first training: call trainer.prune(), or set "
                "trainer.current_round to the number of the round before trainer.train()"
            )

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if self.trainer.lottery_config.data_order == "replay":
            return
        sampler = get_sampler(train_dataloader)
        if not isinstance(sampler, SeedableRandomSampler):
            source = "the data itself" if sampler is None else type(sampler).__name__
            raise ValueError(
                f"data_order is fresh, and this trainer's data loader takes its order from {source}, which the seed "
                f"of a round does not decide: use Trainer's own data loader and data with an index, {_OR_REPLAY}"
            )


def refuse_order_that_no_seed_decides(trainer: Trainer, config: LotteryConfig) -> None:
    """Raise a ValueError for `data_order: fresh` with data or a sampler whose order a round's seed does not decide."""
    if config.data_order == "replay":
        return
    args, data = trainer.args, trainer.train_dataset
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"data_order is fresh, and train_sampling_strategy {args.train_sampling_strategy} has an order that the "
            f"seed of a round does not decide: use train_sampling_strategy random, {_OR_REPLAY}"
        )
    if not args.accelerator_config.use_seedable_sampler:
        raise ValueError(
            "data_order is fresh, and without use_seedable_sampler the order depends on what was drawn before: set "
            f"it to true in accelerator_config, {_OR_REPLAY}"
        )
    if data is not None and (isinstance(data, IterableDataset) or not has_length(data)):
        raise ValueError(
            "data_order is fresh, and train_dataset is iterated in its own order, which no seed of ours changes: use "
            f"a dataset with length and index, {_OR_REPLAY}"
        )
