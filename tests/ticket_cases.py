"""Small tickets for the tests of tickets: a network, its mask and rewind point, and the folder they make."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from hf_lottery.mask import Mask
from hf_lottery.sealed import file_record
from hf_lottery.ticket import document as ticket_json
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket


class Tiny(nn.Module):
    """Masked and unmasked weights, buffers of two dtypes, a scalar, a frozen weight and tied ones."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.embed = nn.Embedding(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 6, bias=False)
        self.head.weight = self.embed.weight
        self.low = nn.Linear(5, 7).to(torch.bfloat16)


def random_mask(model: nn.Module, density: float = 0.3, seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2 and p.requires_grad}
    return Mask({name: torch.rand(p.shape, generator=generator) < density for name, p in matrices.items()})


def tiny_ticket(pruned_value: str = "zero", step: int = 0, density: float = 0.3, **info) -> Ticket:
    model = Tiny()
    rewind = RewindPoint.capture(model, step)
    return Ticket(random_mask(model, density), rewind, {"pruned_becomes": pruned_value, **info})


def reseal(folder: Path, edit=lambda document: None) -> None:
    """Give an edited ticket hashes that are right again, as somebody who forges one would."""
    path = folder / "ticket.json"
    document = json.loads(path.read_text())
    for name in list(document["files"]):
        document["files"][name] = file_record(folder / name)
    edit(document)
    path.write_bytes(ticket_json.dump(document))
