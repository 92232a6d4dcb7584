"""Search: the search for a ticket, round by round, each with a folder. A stopped search continues where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_lottery.distributed.processes import barrier, from_main
from hf_lottery.files import make_folder, naming, sweep_all
from hf_lottery.folder_lock import FolderLock
from hf_lottery.layout import MANIFEST_FILE, STATE_FILE, round_folder
from hf_lottery.results.diverged import Diverged, DivergedError
from hf_lottery.results.evaluations import evaluations
from hf_lottery.results.forgetting import BEFORE
from hf_lottery.sealed import DamagedFile, require_whole_folder
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.checkpoints import last_checkpoint
from hf_lottery.training.discard import discard
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.other_text import OtherTextLoss
from hf_lottery.training.result_line import result_line
from hf_lottery.training.search_file import claim_search

_log = logging.getLogger(__name__)
_OWN_RULES = ("restore_callback_states_from_checkpoint", "ignore_data_skip", "eval_on_start")  # for continuing


class Search:
    """Iterative magnitude pruning (Frankle & Carbin 2019, section 1) with a LotteryTrainer, in its `output_dir`.

    Args:
        trainer: a LotteryTrainer or another LotteryMixin, with `lottery_config` or `ticket`.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._loaded: int | None = None  # the round whose mask and trained weights the model has

    def find_ticket(self) -> Ticket:
        """Train, then prune, rewind and train `num_rounds` times. A finished round is never trained again.

        The model then has the trained weights of the last round, under its mask.

        Raises:
            ValueError: `output_dir` holds the rounds of another search, or another process works there.
            DivergedError: a round diverged; it is recorded, and what was finished before it stays.
        """
        lock = FolderLock(self.trainer.args.output_dir)
        from_main(lambda: lock.require("wait until it ends, or set another output_dir"))
        try:
            from_main(lambda: claim_search(self.trainer))
            from_main(lambda: sweep_all(self.trainer.args.output_dir))
            return self._run_rounds()
        finally:
            lock.release()

    def _run_rounds(self) -> Ticket:
        """All rounds; what a damaged file belongs to is computed again, once."""
        last = self.trainer.lottery_config.num_rounds
        discarded: set[Path] = set()
        while True:
            try:
                for number in range(last + 1):
                    self.run_round(number)
                self.load_trained(last)
                return self.ticket(last)
            except DamagedFile as damage:
                if damage.path in discarded:
                    raise
                discarded.add(damage.path)
                self._discard(damage)

    def _discard(self, damage: DamagedFile) -> None:
        """Make the round that a damaged file belongs to unfinished."""
        folder = from_main(lambda: discard(damage, self.trainer.args.output_dir))
        self._loaded = None
        if from_main(lambda: not (self.trainer.rewinding.folder / MANIFEST_FILE).exists()):
            self.trainer.rewinding.point = None  # round 0 captures it again
        if self.trainer.args.should_save:
            _log.warning("%s. %s is trained again.", damage, folder)

    def run_round(self, number: int, **labels: Any) -> dict[str, Any]:
        """Train round `number` and return its line of results. If the round is finished, the line is only read.

        Args:
            number: the round; 0 is the dense network.
            labels: as in `train_network`.

        Raises:
            DivergedError: the round before diverged.
            FileNotFoundError: the round before is not finished.
        """
        folder = self.round_folder(number)
        if from_main(lambda: folder.finished):
            return from_main(folder.result)
        if number > 0:
            self.load_trained(number - 1)
            self.trainer.prune()
            self.trainer.rewind()
        elif self.trainer.replay.has_trained and self._checkpoint(folder) is None:
            self._restart_round_0()
        return self.train_network(folder, round=number, **labels)

    def _restart_round_0(self) -> None:
        """The model has been trained in this process, maybe in a round 0 that broke off: set it back to θ_0."""
        point = self.trainer.rewinding.point
        if point is None or point.step > 0:
            raise RuntimeError(
                "the model has been trained already, and the weights that round 0 starts from are gone: "
                "make a new model and trainer"
            )
        self.trainer.rewind(retraining="weight_rewinding")  # whatever the later rounds do

    def _checkpoint(self, folder: NetworkFolder) -> str | None:
        """The checkpoint in `folder` that training continues from; None: there is none, or it holds weights alone."""
        trainer = self.trainer
        if trainer.args.save_only_model:
            return None

        def require_rewind_point(facts: dict[str, Any]) -> None:
            k = trainer.lottery_config.resolve_rewind_step(facts["max_steps"])
            if trainer.rewinding.point is None and facts["step"] > k:  # written in step k + 1 of this very training
                require_whole_folder(trainer.rewinding.folder)

        found = from_main(lambda: last_checkpoint(folder.path, require_rewind_point, tidy=True))
        return None if found is None else found[0]

    def train_network(self, folder: NetworkFolder, **labels: Any) -> dict[str, Any]:
        """Train one network under the trainer's current mask and return its line of results.

        A network whose weights or loss become nan or infinite stops there, and is finished: its line says `diverged`.

        Args:
            folder: of this network. If an earlier process left a checkpoint there, training continues from it.
            labels: what the line says about it (round, control, replicate, sample). The defaults are the ticket's.

        Raises:
            ValueError: training ended before the rewind step.
        """
        trainer, self._loaded = self.trainer, None
        trainer.current_round = labels.get("round", 0)
        other_text = OtherTextLoss(trainer, self._other_text_loss_before())
        root, trainer.args.output_dir = trainer.args.output_dir, str(folder.path)
        try:
            make_folder(folder.path)
            with trainer.watch.stopping(), other_text.measuring():
                seconds = self._train(folder)
                self._evaluate_at_the_end()
            with naming(folder.path / STATE_FILE):
                trainer.save_state()
            line = {**result_line(trainer, seconds, labels), **other_text.fields()}
            trained = RewindPoint.capture(trainer.model, trainer.state.global_step, keep=trainer.args.should_save)
            if trainer.args.should_save:
                folder.finish(trainer.mask, trained, line)
            barrier()
        finally:
            trainer.args.output_dir = root
        if line["control"] == "ticket" and trainer.watch.diverged is None:
            self._loaded = line.get("round")
        return line

    def _other_text_loss_before(self) -> float | None:
        """The pretrained model's loss on other text, as round 0 has measured it; None in round 0, and without one."""
        trainer, dense = self.trainer, self.round_folder(0)
        if trainer.other_text is None or trainer.current_round == 0:
            return None
        return from_main(lambda: dense.result() if dense.finished else {}).get(BEFORE)

    def _evaluate_at_the_end(self) -> None:
        trainer = self.trainer
        evaluated = evaluations(trainer.state.log_history)
        if trainer.eval_dataset is None or trainer.watch.diverged is not None:
            return
        if not evaluated or evaluated[-1]["step"] != trainer.state.global_step:
            trainer.evaluate()

    def load_trained(self, number: int) -> None:
        """Give the model mask and trained weights of a finished round, if it does not have them.

        Raises:
            DivergedError: the round diverged.
            FileNotFoundError: the round is not finished.
        """
        if self._loaded != number:
            self.load_network(self.round_folder(number), number)
            self._loaded = number

    def load_network(self, folder: NetworkFolder, number: int) -> None:
        """Give the model mask and trained weights of a finished network of round `number`, to go on from there.

        Raises:
            DivergedError, FileNotFoundError: as `load_trained`.
        """
        trainer, self._loaded = self.trainer, None
        if from_main(lambda: not folder.finished):
            raise FileNotFoundError(f"round {number} is not finished in {folder.path}: run it first")
        self._require_not_diverged(folder, number)
        self._load_rewind_point()
        trained, mask = folder.trained(), folder.mask()
        trained.restore(trainer.model)
        trainer.mask = mask
        trainer.replay.last_lr_factor = folder.result().get("last_lr_factor")
        trainer.current_round = number

    def _require_not_diverged(self, folder: NetworkFolder, number: int) -> None:
        found = Diverged.of_line(folder.result())
        if found is not None:
            raise DivergedError(
                f"round {number} diverged at {found.where}, so no ticket stands on it; it is recorded in "
                f"{folder.path}. Set another output_dir, with a lower learning_rate, a "
                "max_grad_norm above 0, or data without nan"
            )

    def enter_round(self, number: int) -> None:
        """Prepare the trainer for a control of round `number`: rewind point, round, last learning rate of round 0."""
        self._load_rewind_point()
        self.trainer.current_round = number
        self.trainer.replay.last_lr_factor = self.round_folder(0).result()["last_lr_factor"]

    def _load_rewind_point(self) -> None:
        """Load the rewind point that round 0 has written."""
        try:
            self.trainer.load_rewind_point()
        except FileNotFoundError:
            if from_main(lambda: self.round_folder(0).finished):
                raise DamagedFile(self.trainer.rewinding.folder / MANIFEST_FILE, "it is missing") from None
            raise

    def ticket(self, number: int | None = None, **about: Any) -> Ticket:
        """The ticket of a finished round: its mask, θ_k and the results of the rounds that led to it.

        Args:
            number: the round; None: the last one, `num_rounds`.
            about: other fields of the ticket, as `hf_lottery.ticket.info.ticket_info` takes them
                (results with their controls, seeds, recipe, datasets, license).
        """
        trainer = self.trainer
        number = trainer.lottery_config.num_rounds if number is None else number
        self._require_not_diverged(self.round_folder(number), number)
        self._load_rewind_point()
        mask, rewind = self.round_folder(number).mask(), trainer.rewind_point
        about.setdefault("results", [self.round_folder(r).result() for r in range(number + 1)])
        about.setdefault("seeds", [trainer.args.seed])
        return Ticket(mask, rewind, ticket_info(trainer.model, mask, rewind, trainer.lottery_config, **about))

    def round_folder(self, number: int) -> NetworkFolder:
        """The folder of round `number`: `round-NN` in the output folder."""
        return NetworkFolder(round_folder(self.trainer.args.output_dir, number))

    def _train(self, folder: NetworkFolder) -> float:
        """Train, from the last whole checkpoint in `folder` if there is one; returns the seconds in all processes."""
        trainer = self.trainer
        checkpoint = self._checkpoint(folder)
        with self._as_never_interrupted(checkpoint):
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            except KeyError as error:
                if "metric_for_best_model" not in str(error):
                    raise
                raise ValueError(error.args[0]) from error  # Trainer's sentence lists the metrics there are
        if trainer.rewinding.point is None and trainer.watch.diverged is None:
            raise ValueError(
                f"training ended at step {trainer.state.global_step}, before rewind_step "
                f"{trainer.lottery_config.rewind_step} was reached: choose an earlier one"
            )
        return trainer.checkpoints.seconds

    @contextmanager
    def _as_never_interrupted(self, checkpoint: str | None) -> Iterator[None]:
        """In the block, a training that continues does what it would have done, also where Trainer has other rules."""
        args, checkpoints = self.trainer.args, self.trainer.checkpoints
        before = {name: vars(args)[name] for name in _OWN_RULES}
        args.restore_callback_states_from_checkpoint = checkpoints.ends_where_it_stopped = True
        args.ignore_data_skip = False  # otherwise it would see other data
        args.eval_on_start = args.eval_on_start and checkpoint is None  # was done at the start
        try:
            yield
        finally:
            checkpoints.ends_where_it_stopped = False
            vars(args).update(before)
