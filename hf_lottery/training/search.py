"""SearchMixin: the search for a ticket, a round at a time, on disk; stopped anywhere, it goes on there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_lottery.distributed.processes import barrier, from_main, is_main
from hf_lottery.files import write_text
from hf_lottery.pruning.lora import delta_density
from hf_lottery.results.evaluations import evaluations, summarise
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket
from hf_lottery.training.network_folder import SECONDS_FILE, NetworkFolder, last_checkpoint

SEARCH_FILE = "search.json"
# what else makes another search, out of TrainingArguments
_ARGUMENTS = ("seed", "data_seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "optim")


class SearchMixin:
    """The part of `LotteryMixin` that strings its steps together: train, prune, rewind, with a folder a round."""

    def find_ticket(self) -> Ticket:
        """Train, prune, rewind, `num_rounds` times; every finished round is kept on disk and never trained again.

        The model then holds the last round's trained weights, under its mask.

        Raises:
            ValueError: `output_dir` holds the rounds of another search.
        """
        from_main(self._claim_output_dir)
        for number in range(self.lottery_config.num_rounds + 1):
            self.run_round(number)
        self.load_trained(self.lottery_config.num_rounds)
        return self.ticket()

    def _claim_output_dir(self) -> None:
        """Note whose rounds lie in `output_dir`; refuse to go on with those of another search."""
        arguments = self.args.to_dict()
        mine = {**self.lottery_config.to_dict(), **{name: arguments[name] for name in _ARGUMENTS}}
        del mine["num_rounds"]  # more rounds are the same search, longer
        path = Path(self.args.output_dir) / SEARCH_FILE
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(mine, indent=1) + "\n")
            return
        mine, found = json.loads(json.dumps(mine)), json.loads(path.read_text(encoding="utf-8"))
        for name, value in mine.items():
            if found.get(name, value) != value:
                raise ValueError(
                    f"{self.args.output_dir} holds rounds of a search with {name} {found[name]!r}, and it is "
                    f"{value!r} now: set another output_dir"
                )

    def ticket(self, number: int | None = None, **about: Any) -> Ticket:
        """The ticket of a finished round: its mask, θ_k and the results of the rounds that led to it.

        Args:
            number: the round; None: the last one, `num_rounds`.
            about: what else the ticket says of itself, as `hf_lottery.ticket.info.ticket_info` takes it
                (results with their controls, seeds, recipe, datasets, license).
        """
        number = self.lottery_config.num_rounds if number is None else number
        self.load_rewind_point()
        mask, rewind = self.round_folder(number).mask(), self.rewind_point
        about.setdefault("results", [self.round_folder(r).result() for r in range(number + 1)])
        about.setdefault("seeds", [self.args.seed])
        return Ticket(mask, rewind, ticket_info(self.model, mask, rewind, self.lottery_config, **about))

    def run_round(self, number: int, **labels: Any) -> dict[str, Any]:
        """Train round `number` of the search and return its line of results; what is finished is only read.

        Raises:
            FileNotFoundError: an earlier round, which this one starts from, is not finished.
        """
        unit = self.round_folder(number)
        if from_main(lambda: unit.finished):
            return unit.result()
        if number > 0:
            self.load_trained(number - 1)
            self.prune()
            self.rewind()
        elif self._interrupted and from_main(lambda: last_checkpoint(unit.path)) is None:
            self._start_over()
        self.current_round = number
        return self.train_network(unit, round=number, **labels)

    def _start_over(self) -> None:
        """Let round 0 start again after a training that broke off in this process."""
        if self._rewind_callback.point is None or self._rewind_callback.point.step > 0:
            raise RuntimeError(
                "round 0 broke off, and the weights that it started from are gone: make model and trainer anew"
            )
        self.rewind()

    def load_trained(self, number: int) -> None:
        """Take up mask and trained weights of a finished round, unless the model holds them already."""
        if self._last_trained == number:
            return
        unit = self.round_folder(number)
        if not unit.finished:
            raise FileNotFoundError(f"round {number} is not finished in {unit.path}: run it first")
        self.load_rewind_point()
        unit.trained().restore(self.model)
        self._set_mask(unit.mask())
        self._last_lr_factor = unit.result().get("last_lr_factor")
        self.current_round, self._last_trained = number, number

    @property
    def rewind_point(self) -> RewindPoint:
        """θ_k. Raises RuntimeError before step k of the first training."""
        if self._rewind_callback.point is None:
            raise RuntimeError("there is no rewind point yet: train to the rewind step first")
        return self._rewind_callback.point

    def enter_round(self, number: int) -> None:
        """Say which round is being trained, for its records and for the learning rate that fine-tuning goes on at."""
        self.current_round = number
        self._last_lr_factor = self.round_folder(0).result()["last_lr_factor"]

    def load_rewind_point(self) -> None:
        """Take up the rewind point that round 0 wrote."""
        if self._rewind_callback.point is None and not self._rewind_callback.load(self.args):
            raise FileNotFoundError(f"there is no rewind point in {self._rewind_callback.folder}: run round 0 first")

    def train_network(self, unit: NetworkFolder, **labels: Any) -> dict[str, Any]:
        """Train one network under the current mask into its own folder; returns its line of results.

        Args:
            unit: where to; a checkpoint of an earlier, interrupted process in it is continued from.
            labels: what the line says of it (round, control, replicate, sample); the defaults are the ticket's.
        """
        root, self.args.output_dir = self.args.output_dir, str(unit.path)
        try:
            unit.path.mkdir(parents=True, exist_ok=True)
            self._last_trained = None
            self.current_round = number = labels.get("round", 0)  # a control may have looked at another round's
            checkpoint = None if self.args.save_only_model else from_main(lambda: last_checkpoint(unit.path))
            self._seconds_before = from_main(lambda: _seconds(unit.path)) if checkpoint else 0.0
            output = self.train(resume_from_checkpoint=checkpoint)
            if self._rewind_callback.point is None:
                raise ValueError(
                    f"training ended at step {self.state.global_step}, before rewind_step "
                    f"{self.lottery_config.rewind_step} was reached: choose an earlier one"
                )
            evaluated = evaluations(self.state.log_history)
            if self.eval_dataset is not None and (not evaluated or evaluated[-1]["step"] != self.state.global_step):
                self.evaluate()
            self.save_state()
            counts = self.mask.counts()
            result = {
                "replicate": 0,
                "seed": self.args.seed,
                "control": "ticket",
                "sample": 0,
                **labels,
                "density": self.mask.density(),
                "kept": sum(kept for kept, _ in counts.values()),
                "prunable": sum(total for _, total in counts.values()),
                "steps": self.state.global_step,
                **summarise(
                    self.state.log_history,
                    number,
                    self.state.best_global_step if self.args.load_best_model_at_end else None,
                ),
                "train_seconds": self._seconds_before + output.metrics["train_runtime"],
                "last_lr_factor": self._last_lr_factor,
                "fingerprint": self.mask.fingerprint(),
                "densities": counts,
                **delta_density(self.mask, self._parameters()),
            }
            trained = RewindPoint.capture(self.model, self.state.global_step, keep=self.args.should_save)
            if self.args.should_save:
                unit.finish(self.mask, trained, result)
            barrier()
        finally:
            self.args.output_dir = root
        if result["control"] == "ticket":
            self._last_trained = result.get("round")
        return result

    def note_seconds(self, folder: Path, seconds: float) -> None:
        """Beside a checkpoint, how long this process has trained: `train_seconds` is of all of them."""
        if is_main():
            write_text(folder / SECONDS_FILE, f"{self._seconds_before + seconds}\n")

    def round_folder(self, number: int) -> NetworkFolder:
        """Where round `number` of the search lies: `round-NN` in the output folder."""
        return NetworkFolder(Path(self.args.output_dir) / f"round-{number:02d}")


def _seconds(folder: Path) -> float:
    path = folder / SECONDS_FILE
    return float(path.read_text()) if path.is_file() else 0.0
