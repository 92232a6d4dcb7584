"""A ticket whose weights or loss are not finite is refused when it is saved or published."""

from __future__ import annotations

import pytest
import torch

from hf_lottery import LotteryConfig, Mask, RewindPoint, Ticket
from hf_lottery.ticket.document import TicketError
from hf_lottery.ticket.info import ticket_info
from tests.tiny import seeded_net


def ticket_of(value: float, name: str = "first.weight", **about) -> Ticket:
    model = seeded_net()
    mask = Mask.ones({"first.weight": model.first.weight})
    point = RewindPoint.capture(model)
    point.tensors[name].view(-1)[3] = value
    return Ticket(mask, point, ticket_info(model, mask, point, LotteryConfig(), **about))


def line(mask: Mask, **values) -> dict:
    return {
        "replicate": 0,
        "round": 1,
        "control": "ticket",
        "density": 1.0,
        "fingerprint": mask.fingerprint(),
        **values,
    }


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite(tmp_path, value):
    with pytest.raises(TicketError, match=rf"'first.weight' is {value:g} at \[0, 3\] in the ticket's rewind point"):
        ticket_of(value).save_pretrained(tmp_path / "ticket")
    assert not (tmp_path / "ticket" / "ticket.json").exists()


def test_a_buffer_may_hold_minus_infinity_and_no_nan(tmp_path):
    ticket_of(-torch.inf, "norm.running_mean").save_pretrained(tmp_path)
    with pytest.raises(TicketError, match=r"'norm.running_mean' is nan at \[3\]"):
        ticket_of(torch.nan, "norm.running_mean").save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"diverged": {"step": 4, "tensor": "first.weight"}}, "round 1 diverged at step 4"),
        ({"eval_loss": torch.nan}, "the eval_loss of round 1 is nan"),
        ({"test_loss": torch.inf}, "the test_loss of round 1 is inf"),
    ],
)
def test_a_network_without_a_finite_loss(tmp_path, values, message):
    good = ticket_of(0.0)
    ticket = Ticket(good.mask, good.rewind, {**good.info, "results": [line(good.mask, **values)]})
    with pytest.raises(TicketError, match=message):
        ticket.save_pretrained(tmp_path)
    Ticket(good.mask, good.rewind, {**good.info, "results": [line(good.mask, eval_loss=0.5)]}).save_pretrained(
        tmp_path
    )


def test_a_folder_of_an_older_version_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lottery.ticket.save.require_finite", lambda *_: None)  # as it was written before
    ticket_of(torch.nan).save_pretrained(tmp_path)
    with pytest.raises(TicketError, match=r"'first.weight' is nan at \[0, 3\]"):
        Ticket.push_folder(tmp_path, "you/ticket")


def test_the_card_says_what_the_mask_covers_and_where_it_started(tmp_path):
    model = seeded_net()
    with torch.no_grad():
        model.first.weight.view(-1)[:144] = 0
    mask, point = Mask({"first.weight": model.first.weight != 0}), RewindPoint.capture(model)
    config = LotteryConfig(start_from="zeros", exclude_modules=["classifier"])
    Ticket(mask, point, ticket_info(model, mask, point, config)).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "The mask is over 288 of 435 trained weights (66.2%); left out are 75 of norms, biases" in card
    assert "72 in classifier (in exclude_modules)" in card
    assert "started from a sparse model" in card
    again = Ticket.from_pretrained(tmp_path)
    assert again.info["start_from"] == "zeros" and again.info["coverage"]["prunable"] == 288
