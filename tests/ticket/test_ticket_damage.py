"""Each file of a ticket cut, emptied, flipped, removed or made a folder: noticed, or without effect."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hf_lottery.cli import main
from hf_lottery.ticket.ticket import Ticket, TicketError
from tests.ticket.conftest import TOKEN
from tests.ticket.test_ticket_model import bert, trained

# what is said of a damaged file: all but the card and the plots are needed to load; a file that a download leaves out
# may be missing
NEEDED = ("ticket.json", "mask.safetensors", "rewind.safetensors")
FILES = (*NEEDED, "README.md", "accuracy.png", "model.safetensors", "config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "accuracy.png").write_bytes(b"\x89PNG and so on")
    model = bert()
    trained(model).save_pretrained(folder / "ticket", model=model, plots=[folder / "accuracy.png"])
    return folder / "ticket"


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "made a folder":
        path.mkdir()
    elif how != "removed":
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 4
        path.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "flipped": bytes(flipped)}[how])


def run(words: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["hf-lottery", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return (stopped.value.code or 0, *capsys.readouterr())


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "removed", "made a folder"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file(hub, whole, tmp_path, monkeypatch, capsys, name, how):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "ticket")
    _, before, _ = run(["show", "ticket"], monkeypatch, capsys)
    ticket = Ticket.from_pretrained("ticket")
    damage(Path("ticket", name), how)

    must_be_noticed = name in NEEDED or (name != "README.md" and how != "removed")
    status, out, error = run(["show", "ticket"], monkeypatch, capsys)
    if must_be_noticed:
        assert status == 2 and (name in error or "not a ticket" in error) and not out
    else:
        assert status == 0 and out == before

    for words in (["export", "ticket", "--to", "merged"], ["push", "ticket", "you/ticket"]):
        status, out, error = run(words, monkeypatch, capsys)
        assert status in (0, 2)
        if must_be_noticed:
            assert status == 2 and (name in error or "ticket.json" in error)
    if must_be_noticed or (name != "README.md" and how == "removed"):
        assert not hub.repositories
    elif hub.repositories:
        assert Ticket.from_pretrained("you/ticket").mask == ticket.mask

    try:  # written over
        ticket.save_pretrained("ticket")
    except TicketError as refused:
        assert name in str(refused)
    else:
        assert Ticket.from_pretrained("ticket").mask == ticket.mask
