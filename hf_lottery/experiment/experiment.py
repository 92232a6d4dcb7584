"""Experiment: trains replicates x rounds x controls, and finds out from the disk which are finished."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from hf_lottery.distributed.processes import barrier, from_main, is_main
from hf_lottery.experiment.chains import discard_older
from hf_lottery.experiment.controls import CONTROLS, control_seed, require_possible
from hf_lottery.experiment.other_rate import ticket_again
from hf_lottery.files import sweep_all, write_text
from hf_lottery.finished import damages, require_whole_rewind_point
from hf_lottery.folder_lock import FolderLock
from hf_lottery.layout import (
    CHAINS,
    RESULT_FILE,
    RESULTS_FILE,
    TICKET,
    Network,
    PlannedControl,
    planned_networks,
    replicate_folder,
)
from hf_lottery.learning_rates import OF_RECIPE, LearningRates
from hf_lottery.results.chains import CHAIN
from hf_lottery.results.diverged import Diverged, left_out, named, sentence
from hf_lottery.sealed import DamagedFile
from hf_lottery.stopped import Stopped
from hf_lottery.training.discard import discard, owner
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.search import Search
from hf_lottery.training.stopping import Stopping
from hf_lottery.training.trainer import LotteryMixin

_log = logging.getLogger(__name__)
_KEPT = (
    f"The network is trained again if another needs this file; to have it anyway, remove the {RESULT_FILE} beside it "
    "and run again"
)


class Experiment:
    """All the networks of a recipe, each trained once, by any number of workers.

    Args:
        root: the output folder, which workers may share.
        num_rounds: prunings.
        replicates: how many seeds; replicate r runs under `seed` + r.
        controls: what every ticket is compared with: each has a `name` from controls.CONTROLS, the `rounds`
            it is run at (None: every round but 0) and `per_ticket`, how many samples of it.
        seed: the first seed.
        make_trainer: (seed, output folder of the replicate) -> a fresh trainer with a freshly initialised model; with
            `rates` it also takes `learning_rate`, by name.
        labels: () -> further fields of every line of results.jsonl, such as the metric's name.
        rates: where networks are trained at other learning rates than the recipe's own; the rewind step is 0 then.

    Raises:
        ValueError: a control is asked for at a round that does not exist.
    """

    def __init__(
        self,
        root: str | Path,
        num_rounds: int,
        replicates: int,
        controls: Iterable[PlannedControl],
        seed: int,
        make_trainer: Callable[..., LotteryMixin],
        labels: Callable[[], Mapping[str, Any]] = dict,
        rates: LearningRates | None = None,
    ):
        self.root, self.num_rounds, self.replicates = Path(root), num_rounds, replicates
        self.seed, self.make_trainer, self.labels = seed, make_trainer, labels
        self._controls, self._rates = list(controls), rates
        self._networks = planned_networks(num_rounds, replicates, self._controls, rates)
        self._lock: FolderLock | None = None  # of the network that rank 0 has claimed
        self._discarded: set[Path] = set()  # damaged files that were recomputed
        self._settled: dict[Network, bool] = {}  # finished network -> whether it diverged
        self._checked = False  # whether all controls are known to be possible

    def grow(self, replicates: int) -> None:
        """Plan more replicates; what is finished stays finished."""
        self.replicates = replicates
        self._networks = planned_networks(self.num_rounds, replicates, self._controls, self._rates)

    def networks(self) -> list[Network]:
        """Every network, those of early rounds first."""
        return list(self._networks)

    def folder(self, network: Network) -> NetworkFolder:
        """The folder of a network's files."""
        return NetworkFolder(network.folder(self.root), network)

    def pending(self) -> list[Network]:
        """The networks that are not finished and can be: none of them stands on one that diverged."""
        left = [network for network in self._networks if not self.folder(network).finished]
        gone = self.left_out()
        return [network for network in left if network not in gone]

    def left_out(self) -> dict[Network, Network]:
        """A network that is never trained -> the diverged network that it stands on."""
        for network in self._networks:
            stood_on = network.control in (TICKET, *CHAINS)
            if stood_on and network not in self._settled and self.folder(network).finished:
                self._settled[network] = Diverged.of_line(self.folder(network).result()) is not None
        return left_out(self._networks, [network for network, diverged in self._settled.items() if diverged])

    def run(
        self,
        on_start: Callable[[Network], None] = lambda network: None,
        on_wait: Callable[[Network, str], None] = lambda network, holder: None,
        on_diverged: Callable[[str], None] = lambda sentence: None,
        stopping: Stopping | None = None,
        poll_seconds: float = 0.5,
    ) -> None:
        """Train until all networks are finished; other workers may train in the same folder.

        A network that diverges is finished; those that stand on it are never trained, and all others are.

        A network is claimed by a file lock, which the operating system releases if its worker dies; what a dead
        worker left unfinished is then continued. A worker may be several processes: rank 0 claims for all of them.
        A network with a damaged file that is needed is trained again.

        Args:
            on_start: called with each network that this worker trains.
            on_wait: called with a network that must be waited for, and who trains it.
            on_diverged: called with a sentence about each network of this worker that diverged.
            stopping: ends the run after a signal; a callback of the trainers too.
            poll_seconds: how long to wait while other workers train all networks that can be trained now.

        Raises:
            DamagedFile: a file is damaged again after it was written anew.
            Stopped: a signal has come.
            ValueError: a control is not possible with this model. Nothing has been trained then.
        """
        if is_main():
            self._tidy()
        waits_for = None
        while from_main(self.pending):  # asked again each time: no rank waits for longer than poll_seconds
            if stopping is not None:
                stopping.check()
            network = from_main(self._claim)
            if network is None:
                if is_main() and (first := self.pending()[:1]) not in ([], waits_for):
                    waits_for = first
                    on_wait(first[0], FolderLock(self.folder(first[0]).path).holder())
                time.sleep(poll_seconds)
                continue
            try:
                if is_main():
                    on_start(network)
                self._train(network)
                folder = self.folder(network)
                if from_main(lambda folder=folder: not folder.finished):
                    raise FileNotFoundError(f"{network} was trained, but its files are not in {folder.path}")
                if is_main():
                    self._say_if_diverged(network, on_diverged)
            except DamagedFile as damage:
                self.recompute(damage)
            except Stopped as stopped:
                raise Stopped(stopped.number, f"{stopped.where} of {network}") from stopped
            finally:
                self._release()
            self.write_results()
        self.write_results()

    def recompute(self, damage: DamagedFile) -> None:
        """Make the network that a damaged file belongs to unfinished, so that `run` trains it again.

        Raises:
            DamagedFile: this file was damaged before, or is none of a network's.
        """
        network = owner(damage, self.root)
        if damage.path in self._discarded or not any(network == self.folder(n).path for n in self._networks):
            raise damage
        self._discarded.add(damage.path)
        from_main(lambda: self._discard(damage))

    def _discard(self, damage: DamagedFile) -> None:
        network = owner(damage, self.root)
        lock = FolderLock(network)
        mine = self._lock is not None and self._lock.folder == network
        if mine or lock.take():  # otherwise another worker trains it already
            _log.warning("%s. %s is trained again.", damage, network)
            discard(damage, self.root)
            lock.release()

    def _tidy(self) -> None:
        """Remove what killed processes have left, and say which networks are damaged."""
        sweep_all(self.root)
        discard_older(self._networks, self.folder)
        for network in self._networks:
            for damage in damages(network.folder(self.root), network):
                then = "The network is trained again" if damage.path.name == RESULT_FILE else _KEPT
                _log.warning("%s. %s.", damage, then)
            FolderLock(self.folder(network).path).tidy()
        for replicate in range(self.replicates):
            try:
                require_whole_rewind_point(replicate_folder(self.root, replicate))
            except DamagedFile as damage:
                _log.warning("%s. Round 0 is trained again if a network that is not finished needs it.", damage)

    def _say_if_diverged(self, network: Network, say: Callable[[str], None]) -> None:
        line = self.folder(network).result()
        if Diverged.of_line(line) is not None:
            gone = [other for other, cause in self.left_out().items() if cause == network]
            say(sentence(line) + (f"; left out: {named(gone)}" if gone else ""))

    def write_results(self) -> Path:
        """Gather the lines of the finished networks into results.jsonl; returns its path."""
        path = self.root / RESULTS_FILE
        if is_main():
            with FileLock(self.root / ".results.lock"):
                folders = [self.folder(network) for network in sorted(self._networks)]
                lines = [folder.result() for folder in folders if folder.finished]
                write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        barrier()
        return path

    def _claim(self) -> Network | None:
        """Lock the first network that can be trained now; None if other workers train all of those."""
        for network in self.pending():
            folder, first = self.folder(network), network.needs()
            if first is not None and not self.folder(first).finished:
                continue
            lock = FolderLock(folder.path)
            if not lock.take():
                continue
            if not folder.finished:  # another worker may have finished it since `pending`
                self._lock = lock
                return network
            lock.release()
        return None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def trainer(self, network: Network) -> LotteryMixin:
        """A fresh trainer for a network: its replicate's seed and folder, and its learning rate."""
        folder = replicate_folder(self.root, network.replicate)
        rate = {} if network.learning_rate is None else {"learning_rate": network.learning_rate}
        return self.make_trainer(self.seed + network.replicate, folder, **rate)

    def _train(self, network: Network) -> None:
        trainer = self.trainer(network)
        if not self._checked:
            require_possible(trainer, from_main(lambda: {left.control for left in self.pending()}))
            self._checked = True
        search, labels = Search(trainer), {**network.labels(), **self.labels()}
        if self._rates is not None:
            labels[OF_RECIPE] = self._rates.own
        if network == Network(network.replicate, network.round):
            search.run_round(network.round, **{key: value for key, value in labels.items() if key != "round"})
            return
        if network.control == TICKET:
            ticket_again(trainer, network.round)
        else:
            search.enter_round(network.round)
            seed = control_seed(self.seed + network.replicate, network.control, network.round, network.sample)
            of_chain = {"network": network} if network.control in CHAINS else {}
            CONTROLS[network.control](trainer, network.round, seed, **of_chain)
            labels |= {CHAIN: network.round} if of_chain else {}
        search.train_network(self.folder(network), **labels)
