"""Tickets of older schemas are still read, and what newer code may write into a ticket is accepted.

The folders in data/ were written by hf_lottery of schema 1.0, for the network below.
"""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_lottery.config import LotteryConfig
from hf_lottery.mask import Mask
from hf_lottery.ticket.document import parse
from hf_lottery.ticket.info import ticket_info
from hf_lottery.ticket.rewind_point import RewindPoint
from hf_lottery.ticket.ticket import Ticket, TicketError
from tests.ticket_cases import reseal, tiny_ticket

DATA = Path(__file__).parent / "data"
OLD = ("schema-1.0-packed", "schema-1.0-compressed")


class Counting(nn.Module):
    """Each tensor counts 1, 2, 3, ...; the tickets keep the weights that three divides."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.arange(3.0), requires_grad=False)
        self.register_buffer("steps", torch.tensor(7))
        with torch.no_grad():
            for p in (*self.first.parameters(), *self.last.parameters()):
                p.copy_(torch.arange(1.0, 1 + p.numel()).view(p.shape))


def kept_by_hand() -> dict[str, torch.Tensor]:
    weights = {"first.weight": (4, 5), "last.weight": (3, 4)}
    return {
        name: torch.tensor([(i + 1) % 3 == 0 for i in range(rows * columns)]).view(rows, columns)
        for name, (rows, columns) in weights.items()
    }


def test_an_old_ticket_is_applied():
    model = Counting()
    ticket = Ticket.from_pretrained(DATA / "schema-1.0-packed")
    with torch.no_grad():
        model.first.weight.add_(1)
        model.first.bias.zero_()
        model.steps.zero_()
    ticket.apply_to(model)
    expected = dict(Counting().named_parameters())
    for name, kept in kept_by_hand().items():
        assert torch.equal(ticket.mask[name], kept)
        assert torch.equal(model.get_parameter(name), expected[name] * kept)
    assert torch.equal(model.first.bias, expected["first.bias"]) and model.steps == 7
    assert ticket.rewind_step == 2 and ticket.info["criterion"] == "magnitude"
    assert [line["control"] for line in ticket.info["results"]] == ["ticket", "random_mask"]
    assert ticket.info["base_tensors"]["frozen"]["stored"] == "frozen"


def test_an_old_compressed_ticket_with_tensors_of_its_base_model_is_applied():
    model = Counting()
    ticket = Ticket.from_pretrained(DATA / "schema-1.0-compressed")
    with torch.no_grad():
        model.first.weight.zero_()
    ticket.apply_to(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), Counting().parameters(), strict=True))
    stored = {name: record["stored"] for name, record in ticket.info["base_tensors"].items()}
    assert stored == {"frozen": "frozen", "last.weight": "base", "steps": "derived"}
    with torch.no_grad():
        model.last.weight[0, 0] += 1
    with pytest.raises(TicketError, match=r"'last\.weight' is the first tensor that differs"):
        ticket.apply_to(model)


@pytest.mark.parametrize("name", OLD)
def test_an_old_ticket_is_saved_in_the_new_form(tmp_path, name):
    old = Ticket.from_pretrained(DATA / name)
    old.save_pretrained(tmp_path, compress="compressed" in name)
    for file in ("mask.safetensors", "rewind.safetensors"):
        assert (tmp_path / file).read_bytes() == (DATA / name / file).read_bytes()
    before, after = (parse((folder / "ticket.json").read_bytes()) for folder in (DATA / name, tmp_path))
    assert (before.pop("schema"), after.pop("schema")) == ("1.0", "2.2")
    for record in before["tensors"].values():
        record["stored"] = record.pop("theta")
    assert before.pop("sha256") != after.pop("sha256")
    assert before == after


@pytest.mark.parametrize("name", OLD)
def test_an_old_ticket_is_checked_like_a_new_one(tmp_path, name):
    shutil.copytree(DATA / name, tmp_path, dirs_exist_ok=True)
    for edit in (
        lambda record: record.update(theta="somewhere"),
        lambda record: record.update(stored="dense"),  # beside `theta`
        lambda record: record.pop("theta"),
        lambda record: record.update(theta=["dense"]),
    ):
        shutil.copy(DATA / name / "ticket.json", tmp_path)
        reseal(tmp_path, lambda document, edit=edit: edit(document["tensors"]["first.bias"]))
        with pytest.raises(TicketError, match=r"first\.bias"):
            Ticket.from_pretrained(tmp_path)
    (tmp_path / "ticket.json").write_bytes((DATA / name / "ticket.json").read_bytes().replace(b'"theta"', b'"stored"'))
    with pytest.raises(TicketError, match="sha256 differs"):  # the digest is that of the old form
        Ticket.from_pretrained(tmp_path)


def test_the_old_key_is_refused_in_the_new_schema(tmp_path):
    tiny_ticket().save_pretrained(tmp_path)
    reseal(tmp_path, lambda document: document["tensors"]["low.bias"].update(theta="dense"))
    with pytest.raises(TicketError, match=r"tensors\.low\.bias"):
        Ticket.from_pretrained(tmp_path)


# --- result lines and criteria


def test_a_results_metric_and_its_direction_are_kept(tmp_path):
    model = Counting()
    mask, rewind = Mask(kept_by_hand()), RewindPoint.capture(model)
    line = {"control": "ticket", "replicate": 0, "round": 0, "density": 1.0, "test_zero_one_loss": 0.5}
    named = {**line, "metric": "zero_one_loss", "greater_is_better": False}
    odd = {**line, "metric": "a metric of\nmany words", "greater_is_better": "no"}
    info = ticket_info(model, mask, rewind, LotteryConfig(), results=[named, odd, line])
    Ticket(mask, rewind, info).save_pretrained(tmp_path)
    assert Ticket.from_pretrained(tmp_path).info["results"] == [named, line, line]


@pytest.mark.parametrize("key, value", [("metric", "a/b"), ("metric", 1), ("greater_is_better", 1)])
def test_other_forms_of_them_are_refused(tmp_path, key, value):
    line = {"control": "ticket", "replicate": 0, "round": 0, "density": 1.0, key: value}
    with pytest.raises(TicketError, match=rf"results\[0\]\.{key}"):
        tiny_ticket(results=[line]).save_pretrained(tmp_path)


def test_a_criterion_is_a_known_name_or_that_of_a_function(tmp_path):
    tiny_ticket(criterion="my_scores").save_pretrained(tmp_path)
    assert Ticket.from_pretrained(tmp_path).info["criterion"] == "my_scores"
    for name in ("<lambda>", "my.scores", "2scores", "", "s" * 65, None):
        with pytest.raises(TicketError, match="'criterion' is"):
            tiny_ticket(criterion=name).save_pretrained(tmp_path)


def test_where_a_network_diverged_is_kept(tmp_path):
    line = {"control": "ticket", "replicate": 0, "round": 0, "density": 1.0, "test_accuracy": None}
    found = [{**line, "diverged": {"step": 40, "tensor": name}} for name in ("first.weight", None)]
    model = Counting()
    mask, rewind = Mask(kept_by_hand()), RewindPoint.capture(model)
    info = ticket_info(model, mask, rewind, LotteryConfig(), results=found)
    Ticket(mask, rewind, info).save_pretrained(tmp_path)
    assert Ticket.from_pretrained(tmp_path).info["results"] == found


@pytest.mark.parametrize("value", [True, {}, {"step": "4"}, {"step": 4, "tensor": "\x1b[2J"}, {"step": 4, "why": "x"}])
def test_other_forms_of_a_divergence_are_refused(tmp_path, value):
    line = {"control": "ticket", "replicate": 0, "round": 0, "density": 1.0, "diverged": value}
    with pytest.raises(TicketError, match=r"results\[0\]\.diverged"):
        tiny_ticket(results=[line]).save_pretrained(tmp_path)
