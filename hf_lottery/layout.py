"""The output folder of a run: the names of its files and folders, and where each network is in it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hf_lottery.learning_rates import OF_RECIPE, USED, LearningRates

RECIPE_FILE = "recipe.yaml"  # with our defaults filled in
CHECKSUM_LINE = "# sha256 of the lines below: "  # begins recipe.yaml and other sealed texts
COMMAND_FILE = "command"  # the command that was typed
DATA_NOTES_FILE = "data-notes.txt"  # what readers of the results must know about the data, one sentence per line
REWIND_STEP_FILE = "rewind_step.json"  # what `rewind_step: auto` measured and chose
RESULTS_FILE = "results.jsonl"  # one line for each finished network
REPORT_FOLDER, PLOTS_FOLDER = "report", "plots"  # the plots are in the report's folder
PAGE_FILE, MARKDOWN_FILE = "index.html", "report.md"
TICKET_FOLDER = "ticket"
INSTABILITY_FOLDER = "instability"  # what `hf-lottery instability` trains
REWIND_STEP_FOLDER = "rewind-step"  # what `rewind_step: auto` trains
JOBS_FOLDER = "jobs"  # logs of a cluster's jobs

# in the folder of a replicate
REWIND_FOLDER = "rewind"  # the state of the first training at step k
REWIND_FILE = "rewind.safetensors"  # θ_k in that folder; a ticket has a file of the same name
MANIFEST_FILE = "manifest.json"  # sizes and checksums of the files beside it; written last, also in checkpoints
INSTABILITY_FILE = "instability.json"

# in the folder of a network, beside its mask (hf_lottery.mask.MASK_FILE)
RESULT_FILE = "result.json"  # its line of results.jsonl; written last: a network that has it is finished
TRAINED_FILE = "trained.safetensors"
STATE_FILE = "trainer_state.json"  # transformers' TRAINER_STATE_NAME; here so that reports need not import it
GENERATIONS_FILE = "generations.json"
LOCK_FILE = ".lock"  # held by the worker that trains the network
HOLDER_FILE = ".holder"  # which process that is

TICKET = "ticket"
# the controls, in the order in which tables and plots show them; hf_lottery.experiment.controls runs them
CONTROLS = (
    "random_reinit",
    "random_mask",
    "no_rewinding",
    "learning_rate_rewinding",
    "one_shot",
    "shuffled_weights",
    "signed_reinit",
    "set",
    "rigl",
)
# of these, the ones that search for a mask of their own, round by round: each stands on itself in the round before
CHAINS = ("no_rewinding", "learning_rate_rewinding")


# the controls that a winning ticket must beat: the same mask over other weights, the same weights under another mask
LOTTERY_CONTROLS = ("random_reinit", "random_mask")


@dataclass(frozen=True)
class Network:
    """One network that a run trains: the ticket of a round (in round 0 the dense network), or a control of it.

    Args:
        replicate: which repetition of the experiment, from 0.
        round: which round of pruning, from 0.
        control: `ticket`, or the control's name.
        sample: which of a control's samples, from 0.
        learning_rate: what it is trained at; None: the recipe's own. The search for tickets has the recipe's own: a
            ticket at another one has the mask of the ticket of its round, and nothing stands on it.
    """

    replicate: int
    round: int
    control: str = TICKET
    sample: int = 0
    learning_rate: float | None = None

    def __lt__(self, other: Network) -> bool:
        """By replicate, round, control and sample; the recipe's own learning rate comes before others."""
        return self._key() < other._key()

    def _key(self) -> tuple:
        return self.replicate, self.round, self.control, self.sample, self.learning_rate or 0.0

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Network:
        """The network of a line of results.jsonl. KeyError, ValueError or TypeError if the line does not name one."""
        rate = float(line[USED]) if OF_RECIPE in line and line[USED] != line[OF_RECIPE] else None
        if rate is not None and not 0 <= rate < math.inf:
            raise ValueError(f"{USED} is {rate}; it must be a finite number")
        return cls(int(line["replicate"]), int(line["round"]), str(line["control"]), int(line.get("sample", 0)), rate)

    def labels(self) -> dict[str, Any]:
        """What its line of results says it is, but for the learning rate, which the trainer knows."""
        return {"replicate": self.replicate, "round": self.round, "control": self.control, "sample": self.sample}

    def folder(self, root: str | os.PathLike) -> Path:
        """`replicate-R/round-NN` in the output folder `root`; for a control, `CONTROL-SAMPLE` inside it.

        At another learning rate than the recipe's own, `CONTROL-SAMPLE-lr-0.003`, or `ticket-lr-0.003`.
        """
        return self.folder_in(replicate_folder(root, self.replicate))

    def folder_in(self, replicate: str | os.PathLike) -> Path:
        """The same in the folder of its replicate."""
        folder = round_folder(replicate, self.round)
        rate = "" if self.learning_rate is None else f"-lr-{self.learning_rate!r}"
        if self.control == TICKET:
            return folder / f"{TICKET}{rate}" if rate else folder
        return folder / f"{self.control}-{self.sample}{rate}"

    def needs(self) -> Network | None:
        """The network that must be finished first: the round before; for a control, the ticket of its round.

        For one of CHAINS it is the same control in the round before, and in round 1 the dense network. For a ticket at
        another learning rate it is the ticket of its round, as for a control.
        """
        if self.control in CHAINS:
            return replace(self, round=self.round - 1) if self.round > 1 else Network(self.replicate, 0)
        if self.control != TICKET or self.learning_rate is not None:
            return Network(self.replicate, self.round)
        return Network(self.replicate, self.round - 1) if self.round > 0 else None

    def __str__(self) -> str:
        what = "dense" if (self.round, self.control) == (0, TICKET) else self.control.replace("_", " ")
        sample = f" {self.sample + 1}" if self.sample else ""
        rate = "" if self.learning_rate is None else f" · learning rate {self.learning_rate!r}"
        return f"replicate {self.replicate} · round {self.round} · {what}{sample}{rate}"


class PlannedControl(Protocol):
    """A control as a recipe plans it: the rounds it is run at (None: all but round 0), and its samples in each.

    One of CHAINS also runs at the rounds before these, on which it stands.
    """

    name: str
    rounds: Iterable[int] | None
    per_ticket: int


def planned_networks(
    num_rounds: int, replicates: int, controls: Iterable[PlannedControl], rates: LearningRates | None = None
) -> list[Network]:
    """All networks of an experiment, in the order in which they are trained: early rounds first, the ticket first.

    Args:
        num_rounds: prunings.
        replicates: how many.
        controls: with their rounds and samples.
        rates: where networks are trained at other learning rates than the recipe's own.

    Raises:
        ValueError: a control is planned at a round that is not between 1 and `num_rounds`.
    """
    networks = [Network(replicate, round) for replicate in range(replicates) for round in range(num_rounds + 1)]
    if rates is not None:
        networks = [replace(network, learning_rate=rate) for network in networks for rate in rates.of(TICKET)]
    for control in controls:
        asked = control.rounds or range(1, num_rounds + 1)
        for round in asked:
            if not 1 <= round <= num_rounds:
                raise ValueError(f"control {control.name} is asked for at round {round}; rounds are 1 to {num_rounds}")
        for round in range(1, max(asked, default=0) + 1) if control.name in CHAINS else asked:
            networks += [
                Network(replicate, round, control.name, sample, rate)
                for replicate in range(replicates)
                for sample in range(control.per_ticket)
                for rate in (rates.of(control.name) if rates is not None else (None,))
            ]

    def place(network: Network) -> tuple:
        return network.round, (network.control, network.learning_rate) != (TICKET, None), network

    return sorted(networks, key=place)


def replicate_folder(root: str | os.PathLike, replicate: int) -> Path:
    """The folder of one replicate: its rounds, and its rewind point."""
    return Path(root) / f"replicate-{replicate}"


def round_folder(replicate: str | os.PathLike, number: int) -> Path:
    """The folder of round `number` in the folder of a replicate."""
    return Path(replicate) / f"round-{number:02d}"
