"""Ticket: a mask, its rewind point and its evidence, as a small folder that a stranger can check and train."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_lottery.distributed.processes import named_tensors
from hf_lottery.mask import MASK_FILE, Mask
from hf_lottery.ticket.base_model import dtype_name
from hf_lottery.ticket.check import require_base_tensors, require_names_and_shapes
from hf_lottery.ticket.document import MAX_BYTES, TicketError, check_digest, parse
from hf_lottery.ticket.hub import commit_files, open_repository, read_text
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.save import read_card, write_card, write_folder
from hf_lottery.ticket.schema import (
    CARD_FILE,
    HUB_ID,
    JSON_FILE,
    REWIND_FILE,
    require_major_version,
    validate,
)
from hf_lottery.ticket.tensors import StoredMask, StoredRewind, require_file

__all__ = ["Ticket", "TicketError"]


class Ticket:
    """A subnetwork and where it starts: m, θ_k, and what is known about them.

    Args:
        mask: m; which weights are kept, by parameter name.
        rewind: θ_k. One that was downloaded holds only the tensors that its base model cannot give.
        info: what the ticket says about itself, as `hf_lottery.ticket.info.ticket_info` makes it; see
            `hf_lottery.ticket.schema.INFO_FIELDS`. Its `base_tensors` are those taken from the base model; its
            `pruned_becomes` is `zero` (as when it is not given) or `init`.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635): the ticket is (m, θ_0); Frankle et al. 2020 (arXiv
    1912.05671): (m, θ_k).
    """

    def __init__(self, mask: Mask, rewind: RewindPoint, info: Mapping[str, Any] | None = None):
        self._mask: Mask | StoredMask = mask
        self._rewind: RewindPoint | StoredRewind | None = rewind
        self.rewind_step = rewind.step
        self.info = {"pruned_becomes": "zero", **(info or {})}

    @property
    def mask(self) -> Mask:
        """m. A downloaded one is unpacked at the first use; where its file is far too small for what it claims, only
        `apply_to` unpacks it, for a model that has so many weights (else TicketError)."""
        if isinstance(self._mask, StoredMask):
            self._mask.require_bounded()
            self._mask = self._mask.unpack()
        return self._mask

    @property
    def rewind(self) -> RewindPoint:
        """θ_k as far as the ticket holds it: pruned weights are 0 where `pruned_becomes` is `zero`, and tensors that
        are the base model's own are missing (`apply_to` finds them in the model)."""
        if not isinstance(self._rewind, RewindPoint):
            names = self._rewind.table if self._rewind else ()
            self._rewind = RewindPoint(self.rewind_step, {name: self._value(name) for name in names})
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
            model: of the ticket's architecture; where θ_k is the base model's own, that model as it was loaded.

        Raises:
            TicketError: a name, shape or hash does not fit; the message names the first tensor that differs.
        """
        stored = self._stored_names()
        base = {name: e for name, e in self.info.get("base_tensors", {}).items() if e["theta"] != "derived"}
        shapes = {name: entry["shape"] for name, entry in base.items()} | self._shapes()
        require_names_and_shapes(model, shapes, self.info.get("base_model"))
        require_base_tensors(
            model, {name: base[name] for name in base if name not in stored}, self.info.get("base_model")
        )
        if isinstance(self._mask, StoredMask):
            self._mask = self._mask.unpack()  # bounded now: the model has as many weights
        state = named_tensors(model)
        for name in stored:
            dtype = self._dtype(name)
            if dtype_name(state[name]) != dtype:
                raise TicketError(
                    f"'{name}' is {dtype_name(state[name])} in this model and {dtype} in the ticket: "
                    f"make the model in {dtype}"
                )
        for name in stored:
            state[name].copy_(self._value(name))
        if self.pruned_becomes == "zero":
            for name, kept in self.mask.items():
                state[name].masked_fill_(~kept.to(state[name].device), 0)
        return model

    def _stored_names(self) -> Iterable[str]:
        """Of the tensors whose θ_k the ticket holds itself."""
        if isinstance(self._rewind, RewindPoint):
            return self._rewind.tensors.keys()
        return self._rewind.table.keys() if self._rewind else ()

    def _value(self, name: str) -> Tensor:
        """θ_k of one tensor that the ticket holds."""
        if isinstance(self._rewind, RewindPoint):
            return self._rewind.tensors[name]
        return self._rewind.value(name, self.mask)

    def _dtype(self, name: str) -> str:
        """Of one tensor that the ticket holds."""
        if isinstance(self._rewind, RewindPoint):
            return dtype_name(self._rewind.tensors[name])
        return self._rewind.table[name]["dtype"]

    def _shapes(self) -> dict[str, Iterable[int]]:
        """Name -> shape, of the tensors that the ticket masks or holds; nothing is unpacked for it."""
        masked = (
            self._mask.shapes if isinstance(self._mask, StoredMask) else {n: m.shape for n, m in self._mask.items()}
        )
        if isinstance(self._rewind, RewindPoint):
            return masked | {name: value.shape for name, value in self._rewind.tensors.items()}
        return masked | {name: entry["shape"] for name, entry in (self._rewind.table if self._rewind else {}).items()}

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
            save_directory: made if need be. Of a README.md that is there, the user's own text stays.
            compress: code the mask to within 5% of its entropy instead of one bit a weight.
            model: the trained network, to go along as transformers (or PEFT) write it, with exact zeros.
            plots: PNG files for the card, or a folder of them.

        Raises:
            TicketError: the mask, the rewind point, `info` or the model do not belong together.
        """
        if isinstance(plots, str | os.PathLike):
            plots = sorted(Path(plots).glob("*.png"))
        write_folder(self, Path(save_directory), compress, model, map(Path, plots))

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
            repo_id: such as `you/name`; made if need be.
            private: whether a repository that is made is private; by default as the account says.
            token: by default the one of `hf auth login`.
            commit_message: by default one that says what was found.
            revision: the branch, made if need be; by default main.
            compress, model, plots: as in `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:  # clean: nothing but the ticket can go along
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

        Of a README.md on the Hub the user's own text stays; where there is none, the folder's is the first.

        Args: as in `push_to_hub`.

        Raises:
            TicketError: the folder holds no ticket, or a damaged one.
        """
        folder = Path(folder)
        ticket = cls.from_pretrained(folder)
        files = parse((folder / JSON_FILE).read_bytes())["files"]
        for name, record in files.items():
            require_file(folder / name, record)
        api = HfApi(token=token)
        repo_id, head = open_repository(api, repo_id, private, revision)
        existing = read_text(api, repo_id, CARD_FILE, head)
        if existing is None and (folder / CARD_FILE).is_file() and not (folder / CARD_FILE).is_symlink():
            existing = read_card((folder / CARD_FILE).read_bytes())
        return commit_files(
            api,
            {CARD_FILE: write_card(ticket, files, repo_id, existing)}
            | {name: folder / name for name in (JSON_FILE, *files)},
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
            TicketError: there is no ticket, or it is damaged, of a newer major version, or not what it says.
            FileNotFoundError: there is neither such a folder nor, by its form, such a Hub id.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if not HUB_ID.fullmatch(str(pretrained_model_name_or_path)):
                raise FileNotFoundError(
                    f"there is no folder {pretrained_model_name_or_path}, and it is not a Hub id such as you/name"
                )
            # one call, so that all files are of one commit
            folder = Path(
                snapshot_download(
                    str(pretrained_model_name_or_path),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    allow_patterns=[JSON_FILE, MASK_FILE, REWIND_FILE],
                )
            )
        if not (folder / JSON_FILE).is_file():
            raise TicketError(f"there is no ticket.json in {pretrained_model_name_or_path}; it is not a ticket")
        return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> Ticket:
        size = (folder / JSON_FILE).stat().st_size
        if size > MAX_BYTES:
            raise TicketError(f"ticket.json has {size:,} bytes; at most {MAX_BYTES:,} are read")
        data = (folder / JSON_FILE).read_bytes()
        document = parse(data)
        require_major_version(document)  # first: a newer major version may be sealed in another way
        check_digest(data, document)
        validate(document)
        files, tensors = document.pop("files"), document.pop("tensors")
        if MASK_FILE not in files:
            raise TicketError("ticket.json does not list mask.safetensors, without which there is no ticket")
        for name, record in files.items():
            if name in (MASK_FILE, REWIND_FILE) or (folder / name).exists():
                require_file(folder / name, record)
        shapes = {name: torch.Size(entry["shape"]) for name, entry in tensors.items() if "kept" in entry}
        stored = {name: entry for name, entry in tensors.items() if entry["theta"] in ("survivors", "dense")}

        ticket = cls.__new__(cls)
        ticket._mask = StoredMask(
            folder / MASK_FILE,
            shapes,
            {name: tensors[name]["kept"] for name in shapes},
            document.pop("mask_encoding"),
            document.pop("fingerprint"),
        )
        ticket._rewind = StoredRewind(folder / REWIND_FILE, stored) if stored else None
        ticket.rewind_step = document.pop("rewind_step")
        for key in ("format", "schema", "mask_true_means", "sha256"):
            del document[key]
        document["base_tensors"] = {
            name: {key: value for key, value in entry.items() if key != "kept"}
            for name, entry in tensors.items()
            if name not in stored
        }
        ticket.info = document
        return ticket
