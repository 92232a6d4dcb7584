"""Controls that search for a mask of their own: the next round of such a chain, and what an earlier version left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from hf_lottery.folder_lock import FolderLock
from hf_lottery.layout import CHAINS, RESULT_FILE, TICKET, Network
from hf_lottery.results.chains import stands_on_ticket
from hf_lottery.training.checkpoints import remove_checkpoints
from hf_lottery.training.network_folder import NetworkFolder
from hf_lottery.training.search import Search
from hf_lottery.training.trainer import LotteryMixin

_log = logging.getLogger(__name__)


def continue_chain(trainer: LotteryMixin, network: Network, retraining: str) -> None:
    """Prune the chain's network of the round before by its own trained weights, and start as `retraining` says.

    This is what `Search.run_round` does with tickets: a chain equals a search with this `retraining`, bit for bit.

    Args:
        trainer: fresh, with the output folder of the replicate.
        network: what is trained next. Its replicate does not matter.
        retraining: one of `config.RETRAINING`.

    Raises:
        DivergedError: the network of the round before diverged.
        FileNotFoundError: the network of the round before is not finished.
    """
    before = network.needs()
    Search(trainer).load_network(NetworkFolder(before.folder_in(trainer.args.output_dir)), before.round)
    trainer.prune()
    trainer.rewind(retraining)


def discard_older(networks: Iterable[Network], folder: Callable[[Network], NetworkFolder]) -> None:
    """Make the networks of chains unfinished that an earlier version trained from the ticket's weights, and say so.

    Args:
        networks: of the experiment.
        folder: of each.
    """
    for network in networks:
        if network.control not in CHAINS or network.needs().control == TICKET:
            continue
        place, before = folder(network), folder(network.needs())
        if not _of_this_chain(place, before) and (lock := FolderLock(place.path)).take():
            if not _of_this_chain(place, before):  # still: another worker may have trained it
                _discard(network, place)
            lock.release()


def _of_this_chain(place: NetworkFolder, before: NetworkFolder) -> bool:
    """Whether what is in a folder can stand on the chain's network of the round before."""
    if place.finished:
        return not stands_on_ticket(place.result())
    return before.finished or not place.path.is_dir()


def _discard(network: Network, place: NetworkFolder) -> None:
    if place.finished:
        _log.warning(
            "%s was trained by an earlier version, from the ticket of the round before. It is trained again, from its "
            "own network of that round.",
            network,
        )
        (place.path / RESULT_FILE).unlink()
    remove_checkpoints(place.path)
