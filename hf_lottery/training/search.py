"""Search: the search for a ticket, round by round, each with a folder. A stopped search continues where it stopped."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from hf_lottery.distributed.processes import barrier, from_main, is_main, named_parameters
from hf_lottery.files import write_text
from hf_lottery.layout import round_folder
from hf_lottery.pruning.lora import delta_density
from hf_lottery.results.diverged import Diverged, DivergedError
from hf_lottery.results.evaluations import evaluations, summarise
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.network_folder import SECONDS_FILE, NetworkFolder, last_checkpoint

SEARCH_FILE = "search.json"
# TrainingArguments that, with the LotteryConfig, say which search it is
_ARGUMENTS = ("seed", "data_seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "optim")


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
            DivergedError: a round diverged; it is recorded, and what was finished before it stays.
            ValueError: `output_dir` holds the rounds of another search.
        """
        from_main(self._claim_output_dir)
        last = self.trainer.lottery_config.num_rounds
        for number in range(last + 1):
            self.run_round(number)
        self.load_trained(last)
        return self.ticket(last)

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
            return folder.result()
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
        return None if self.trainer.args.save_only_model else from_main(lambda: last_checkpoint(folder.path))

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
        root, trainer.args.output_dir = trainer.args.output_dir, str(folder.path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            with trainer.watch.stopping():
                seconds = self._train(folder)
                self._evaluate_at_the_end()
            trainer.save_state()
            line = self._line(seconds, labels)
            trained = RewindPoint.capture(trainer.model, trainer.state.global_step, keep=trainer.args.should_save)
            if trainer.args.should_save:
                folder.finish(trainer.mask, trained, line)
            barrier()
        finally:
            trainer.args.output_dir = root
        if line["control"] == "ticket" and trainer.watch.diverged is None:
            self._loaded = line.get("round")
        return line

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
        if self._loaded == number:
            return
        folder, trainer = self.round_folder(number), self.trainer
        if not folder.finished:
            raise FileNotFoundError(f"round {number} is not finished in {folder.path}: run it first")
        self._require_whole(number)
        trainer.load_rewind_point()
        folder.trained().restore(trainer.model)
        trainer.mask = folder.mask()
        trainer.replay.last_lr_factor = folder.result().get("last_lr_factor")
        trainer.current_round = self._loaded = number

    def _require_whole(self, number: int) -> None:
        found = Diverged.of_line(self.round_folder(number).result())
        if found is not None:
            raise DivergedError(
                f"round {number} diverged at {found.where}, so no ticket stands on it; it is recorded in "
                f"{self.round_folder(number).path}. Set another output_dir, with a lower learning_rate, a "
                "max_grad_norm above 0, or data without nan"
            )

    def enter_round(self, number: int) -> None:
        """Prepare the trainer for a control of round `number`: rewind point, round, last learning rate of round 0."""
        self.trainer.load_rewind_point()
        self.trainer.current_round = number
        self.trainer.replay.last_lr_factor = self.round_folder(0).result()["last_lr_factor"]

    def ticket(self, number: int | None = None, **about: Any) -> Ticket:
        """The ticket of a finished round: its mask, θ_k and the results of the rounds that led to it.

        Args:
            number: the round; None: the last one, `num_rounds`.
            about: other fields of the ticket, as `hf_lottery.ticket.info.ticket_info` takes them
                (results with their controls, seeds, recipe, datasets, license).
        """
        trainer = self.trainer
        number = trainer.lottery_config.num_rounds if number is None else number
        self._require_whole(number)
        trainer.load_rewind_point()
        mask, rewind = self.round_folder(number).mask(), trainer.rewind_point
        about.setdefault("results", [self.round_folder(r).result() for r in range(number + 1)])
        about.setdefault("seeds", [trainer.args.seed])
        return Ticket(mask, rewind, ticket_info(trainer.model, mask, rewind, trainer.lottery_config, **about))

    def round_folder(self, number: int) -> NetworkFolder:
        """The folder of round `number`: `round-NN` in the output folder."""
        return NetworkFolder(round_folder(self.trainer.args.output_dir, number))

    def _claim_output_dir(self) -> None:
        """Write into `output_dir` which search it holds; raise a ValueError if it holds another."""
        trainer = self.trainer
        arguments = trainer.args.to_dict()
        mine = {**trainer.lottery_config.to_dict(), **{name: arguments[name] for name in _ARGUMENTS}}
        del mine["num_rounds"]  # with more rounds it is the same search, longer
        path = Path(trainer.args.output_dir) / SEARCH_FILE
        if not path.is_file():
            write_text(path, json.dumps(mine, indent=1) + "\n")
            return
        mine, found = json.loads(json.dumps(mine)), json.loads(path.read_text(encoding="utf-8"))
        for name, value in mine.items():
            if found.get(name, value) != value:
                raise ValueError(
                    f"{trainer.args.output_dir} holds rounds of a search with {name} {found[name]!r}, and it is "
                    f"{value!r} now: set another output_dir"
                )

    def _train(self, folder: NetworkFolder) -> float:
        """Train, from the last checkpoint in `folder` if there is one; returns the seconds in all processes."""
        trainer = self.trainer
        checkpoint = self._checkpoint(folder)
        clock = _Clock(from_main(lambda: _read_seconds(folder.path)) if checkpoint else 0.0)
        trainer.add_callback(clock)
        try:
            output = trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            trainer.remove_callback(clock)
        if trainer.rewinding.point is None and trainer.watch.diverged is None:
            raise ValueError(
                f"training ended at step {trainer.state.global_step}, before rewind_step "
                f"{trainer.lottery_config.rewind_step} was reached: choose an earlier one"
            )
        return clock.seconds_before + output.metrics["train_runtime"]

    def _line(self, seconds: float, labels: dict[str, Any]) -> dict[str, Any]:
        """The line of results of the network that was just trained."""
        trainer, mask, state = self.trainer, self.trainer.mask, self.trainer.state
        counts = mask.counts()
        best_step = state.best_global_step if trainer.args.load_best_model_at_end else None
        return {
            "replicate": 0,
            "seed": trainer.args.seed,
            "control": "ticket",
            "sample": 0,
            **labels,
            "density": mask.density(),
            "kept": sum(kept for kept, _ in counts.values()),
            "prunable": sum(total for _, total in counts.values()),
            "steps": state.global_step,
            **self._metrics(summarise(state.log_history, labels.get("round", 0), best_step), labels.get("metric")),
            "train_seconds": seconds,
            "last_lr_factor": trainer.replay.last_lr_factor,
            "fingerprint": mask.fingerprint(),
            "densities": counts,
            **delta_density(mask, named_parameters(trainer.model)),
        }

    def _metrics(self, found: dict[str, Any], metric: str | None) -> dict[str, Any]:
        """What a line says of the evaluations; null stands for all that a network which diverged does not have."""
        diverged = self.trainer.watch.diverged
        if diverged is None:  # nan and infinity are no JSON
            return {key: value if math.isfinite(value) else None for key, value in found.items()}
        names = [*found, "eval_loss", "early_stop_step", f"test_{metric or 'loss'}"]
        names += [f"early_stop_{name}" for name in names if name.startswith("test_")]
        return {**dict.fromkeys(names), "diverged": asdict(diverged)}


class _Clock(TrainerCallback):
    """Writes how long training has taken beside each checkpoint, so that the seconds of all processes are added up."""

    def __init__(self, seconds_before: float):
        self.seconds_before = seconds_before
        self.began = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_save(self, args, state, control, **kwargs):
        if is_main():
            seconds = self.seconds_before + time.monotonic() - self.began
            write_text(Path(args.output_dir) / SECONDS_FILE, f"{seconds}\n")


def _read_seconds(folder: Path) -> float:
    path = folder / SECONDS_FILE
    return float(path.read_text()) if path.is_file() else 0.0
