"""Ticket: a mask, its rewind point and its evidence, as a small folder that anyone can check and train."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_lottery.distributed.processes import named_tensors
from hf_lottery.mask import Mask
from hf_lottery.ticket.base_model import dtype_name
from hf_lottery.ticket.check import require_base_tensors, require_dtypes, require_names_and_shapes
from hf_lottery.ticket.document import TicketError, dump, parse, read_bounded
from hf_lottery.ticket.finite import require_finite
from hf_lottery.ticket.hub import commit_files, download, open_repository, read_text
from hf_lottery.ticket.read import read_folder
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.save import decode_card, encode_card, publishable, write_folder
from hf_lottery.ticket.schema import CARD_FILE, JSON_FILE
from hf_lottery.ticket.tensors import StoredMask, StoredRewind, require_file

__all__ = ["Ticket", "TicketError"]


class Ticket:
    """A subnetwork and where it starts: m, θ_k, and what is known about them.

    Args:
        mask: m; which weights are kept, by parameter name. `from_pretrained` gives the one on disk, to be read later.
        rewind: θ_k, on disk too. A downloaded ticket holds only the tensors that its base model does not have.
        info: the facts about the ticket, as `hf_lottery.ticket.info.ticket_info` makes them; see
            `hf_lottery.ticket.schema.INFO_FIELDS`. Also `base_tensors`, the tensors that the base model has, and
            `pruned_becomes`, which is `zero` (also when it is not given) or `init`.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635): the ticket is (m, θ_0); Frankle et al. 2020 (arXiv
    1912.05671): (m, θ_k).
    """

    def __init__(
        self, mask: Mask | StoredMask, rewind: RewindPoint | StoredRewind, info: Mapping[str, Any] | None = None
    ):
        self._mask, self._rewind = mask, rewind
        self.rewind_step = rewind.step
        self.info = {"pruned_becomes": "zero", **(info or {})}

    @property
    def mask(self) -> Mask:
        """m. One on disk is unpacked at the first use.

        Raises:
            TicketError: the file is far too small for the number of weights that it states. For a model that has so
                many weights, `apply_to` unpacks it nevertheless.
        """
        if isinstance(self._mask, StoredMask):
            self._mask.require_bounded()
            self._mask = self._mask.unpack()
        return self._mask

    @property
    def rewind(self) -> RewindPoint:
        """The part of θ_k that the ticket holds; one on disk is read at the first use.

        Pruned weights are 0 where `pruned_becomes` is `zero`. Tensors that the base model has are missing: `apply_to`
        uses those of the model.

        Raises:
            TicketError: as for `mask`; or a weight is not finite, or the ticket's own network diverged.
        """
        if isinstance(self._rewind, StoredRewind):
            self._rewind.require_bounded()
            point = RewindPoint(self.rewind_step, {name: self._value(name) for name in self._rewind.table})
            require_finite(self.mask, point, self.info)
            self._rewind = point
        return self._rewind

    @property
    def pruned_becomes(self) -> str:
        """What a pruned weight is: `zero`, or `init` (it stays at its rewind value, as in LoTA)."""
        return self.info["pruned_becomes"]

    def density(self) -> float:
        """Kept / all weights under the mask, counted."""
        return self.mask.density()

    def __repr__(self) -> str:
        return f"Ticket({self.mask!r}, rewind step {self.rewind_step}, base model {self.info.get('base_model')})"

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> nn.Module:
        """Put θ_k ⊙ m into `model`, in place: rewound weights, ready to train. Returns the model.

        (Where `pruned_becomes` is `init`, θ_k.) Everything is checked before the first weight is written.

        Args:
            model: of the ticket's architecture; where θ_k is that of the base model, that model as it was loaded.

        Raises:
            TicketError: a name, shape, dtype or hash differs; the message names the first tensor that differs.
        """
        self._require_belongs_to(model)
        if isinstance(self._mask, StoredMask):
            self._mask = self._mask.unpack()  # safe without `require_bounded`: the model has as many weights
        state = named_tensors(model)
        for name in self._shapes_and_dtypes():
            state[name].copy_(self._value(name))
        if self.pruned_becomes == "zero":
            for name, kept in self.mask.items():
                state[name].masked_fill_(~kept.to(state[name].device), 0)
        return model

    def _require_belongs_to(self, model: nn.Module) -> None:
        """Raise TicketError unless the ticket can be applied to `model`. Nothing is unpacked for it."""
        base_model, base = self.info.get("base_model"), self.info.get("base_tensors", {})
        base = {name: entry for name, entry in base.items() if entry["stored"] != "derived"}
        stored = self._shapes_and_dtypes()
        masks = self._mask.shapes if isinstance(self._mask, StoredMask) else {n: m.shape for n, m in self.mask.items()}
        shapes = {name: entry["shape"] for name, entry in (base | stored).items()}
        require_names_and_shapes(model, shapes | masks, base_model)
        require_base_tensors(model, {name: base[name] for name in base if name not in stored}, base_model)
        require_dtypes(model, {name: entry["dtype"] for name, entry in stored.items()})

    def _shapes_and_dtypes(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> `shape` and `dtype`, of the tensors of θ_k that the ticket holds."""
        if isinstance(self._rewind, StoredRewind):
            return self._rewind.table
        tensors = self._rewind.tensors
        return {name: {"shape": value.shape, "dtype": dtype_name(value)} for name, value in tensors.items()}

    def _value(self, name: str) -> Tensor:
        """θ_k of one tensor that the ticket holds."""
        if isinstance(self._rewind, StoredRewind):
            return self._rewind.value(name, self.mask)
        return self._rewind.tensors[name]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        compress: bool = False,
        model: PreTrainedModel | PeftModel | None = None,
        plots: str | os.PathLike | Iterable[str | os.PathLike] = (),
    ) -> None:
        """Write the ticket's folder: ticket.json, mask.safetensors, where needed rewind.safetensors, and README.md.

        Args:
            save_directory: is created if it does not exist. The user's own text in a README.md there is kept.
            compress: compress the mask to within 5% of its entropy instead of one bit per weight.
            model: the trained network, saved beside the ticket by transformers (or PEFT), with exact zeros.
            plots: PNG files for the card, or a folder of them.

        Raises:
            TicketError: the mask, the rewind point, `info` and the model do not belong together, or one of them cannot
                be stored.
        """
        if isinstance(plots, str | os.PathLike):
            plots = sorted(Path(plots).glob("*.png"))
        write_folder(
            Path(save_directory),
            self.mask,
            self.rewind,
            self.info,
            compress=compress,
            model=model,
            plots=map(Path, plots),
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        compress: bool = False,
        model: PreTrainedModel | PeftModel | None = None,
        plots: str | os.PathLike | Iterable[str | os.PathLike] = (),
    ) -> str:
        """Publish the ticket on the Hub in one commit; returns the commit's page.

        Args:
            repo_id: such as `you/name`; is created if it does not exist.
            private: whether a repository that is created is private; by default as set for the account.
            token: by default the one of `hf auth login`.
            commit_message: by default one with the density and the rewind step.
            revision: the branch, which is created if it does not exist; by default main.
            compress, model, plots: as in `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:  # an empty one, so that nothing else is published
            self.save_pretrained(folder, compress=compress, model=model, plots=plots)
            return self.push_folder(
                folder, repo_id, private=private, token=token, commit_message=commit_message, revision=revision
            )

    @classmethod
    def push_folder(
        cls,
        folder: str | os.PathLike,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Publish a folder that `save_pretrained` wrote: the files that its ticket.json lists, and no others.

        The user's own text in a README.md on the Hub is kept; if there is none, that of the folder's README.md.

        Args: as in `push_to_hub`.

        Raises:
            TicketError: the folder holds no ticket, or a damaged one.
            FileNotFoundError: there is no such folder.
            HubError: the Hub could not be reached, or refused it; it holds the old ticket or the new one, whole.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder '{folder}'; give the folder of a run or of a ticket")
        ticket = cls.from_pretrained(folder)
        ticket.rewind  # noqa: B018 - reading it refuses what is not finite
        data = read_bounded(folder / JSON_FILE)
        document = parse(data)
        files, recipe = document["files"], publishable(ticket.info).get("recipe")
        if recipe != document.get("recipe"):  # an older version wrote absolute paths
            data = dump({**document, "recipe": recipe})
        for name, record in files.items():
            require_file(folder / name, record)
        own_card = folder / CARD_FILE
        own = decode_card(own_card.read_bytes()) if own_card.is_file() and not own_card.is_symlink() else None

        def card(existing: str | None) -> bytes:
            return encode_card(ticket.mask, ticket.rewind_step, publishable(ticket.info), files, repo_id, existing)

        card(own)  # one that cannot be kept is refused before a repository is made for it
        api = HfApi(token=token)
        repo_id, head = open_repository(api, repo_id, private, revision)
        theirs = read_text(api, repo_id, CARD_FILE, head)
        return commit_files(
            api,
            {CARD_FILE: card(own if theirs is None else theirs), JSON_FILE: data}
            | {name: folder / name for name in files},
            repo_id,
            parent=head,
            revision=revision,
            message=commit_message
            or f"Ticket: {ticket.density():.2%} of the weights, rewind step {ticket.rewind_step}",
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> Ticket:
        """Read a ticket from a folder, or from a repository of the Hub. Nothing in it is run.

        Args:
            pretrained_model_name_or_path: a folder that holds ticket.json, or a Hub id such as `you/name`.
            revision: branch, tag or commit of the Hub repository.
            token: for a private repository; by default the one of `hf auth login`.
            cache_dir: as in transformers.

        Raises:
            TicketError: there is no ticket, or it is damaged, or of a newer major version.
            FileNotFoundError: there is no such folder, and the text is not a Hub id.
            HubError: the Hub could not be reached, does not have it, or does not let you see it.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download(str(pretrained_model_name_or_path), revision, token, cache_dir)
        if not (folder / JSON_FILE).is_file():
            raise TicketError(f"there is no {JSON_FILE} in {pretrained_model_name_or_path}; it is not a ticket")
        return cls(*read_folder(folder))
