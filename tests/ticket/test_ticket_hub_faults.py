"""A Hub that is not there, breaks off or refuses: one sentence, and on the Hub the old ticket or the new one, whole."""

from __future__ import annotations

import copy
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_lottery.ticket.hub_error import HubError
from hf_lottery.ticket.ticket import Ticket
from tests.hub_server import Fault
from tests.ticket.conftest import TOKEN
from tests.ticket_cases import tiny_ticket

FAULTS = ("no answer", "half an answer", 503)
MORE = [pytest.param(how, marks=pytest.mark.slow) for how in ("hang up", "nonsense", 401, 403, 404, 429, 500)]
NOWHERE = "http://127.0.0.1:9"  # the port `discard`, where nothing listens
PLOT = b"\x89PNG"


@pytest.fixture
def folders(tmp_path):
    """Two tickets that have other files: the older one a plot and a rewind point of other values."""
    (tmp_path / "accuracy.png").write_bytes(PLOT)
    tiny_ticket(density=0.5).save_pretrained(tmp_path / "old", plots=[tmp_path / "accuracy.png"])
    tiny_ticket(density=0.1, pruned_value="init").save_pretrained(tmp_path / "new", compress=True)
    return tmp_path / "old", tmp_path / "new"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """huggingface_hub waits for up to 23 seconds before it gives up on a request."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def ticket_on(hub) -> dict[str, bytes]:
    return {name: data for name, data in hub.tree("you/ticket").items() if name != ".gitattributes"}


@pytest.mark.parametrize("onwards", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [*FAULTS, *MORE])
def test_at_every_request_of_a_push(hub, folders, how, onwards):
    old, new = folders
    Ticket.push_folder(old, "you/ticket", token=TOKEN)
    before, state = ticket_on(hub), copy.deepcopy(hub.repositories)
    hub.requests.clear()
    Ticket.push_folder(new, "you/ticket", token=TOKEN)
    count, after = len(hub.requests), ticket_on(hub)
    assert "accuracy.png" in before and "accuracy.png" not in after
    for number in range(count):
        hub.repositories, hub.large_files = copy.deepcopy(state), {}
        hub.requests.clear()
        hub.fault = Fault(number, how, onwards)
        try:
            Ticket.push_folder(new, "you/ticket", token=TOKEN)
            assert ticket_on(hub) == after
        except HubError as error:
            assert "\n" not in str(error) and "published in you/ticket" in str(error)
            assert ticket_on(hub) in (before, after)
            hub.fault = None
            Ticket.push_folder(new, "you/ticket", token=TOKEN)
            assert ticket_on(hub) == after


@pytest.mark.parametrize("how", [*FAULTS, *MORE])
def test_at_every_request_of_a_download(hub, folders, how, tmp_path):
    Ticket.push_folder(folders[0], "you/ticket", token=TOKEN)
    hub.requests.clear()
    expected = Ticket.from_pretrained("you/ticket", cache_dir=tmp_path / "count").mask
    for number in range(len(hub.requests)):
        hub.requests.clear()
        hub.fault = Fault(number, how, onwards=True)
        cache = tmp_path / f"cache-{number}"
        with pytest.raises(
            HubError, match="there is no folder 'you/ticket' here, and it could not be downloaded"
        ) as e:
            Ticket.from_pretrained("you/ticket", cache_dir=cache)
        assert "\n" not in str(e.value)
        hub.fault = None
        assert Ticket.from_pretrained("you/ticket", cache_dir=cache).mask == expected


def test_a_hub_that_is_silent(hub, folders, monkeypatch):
    monkeypatch.setattr("hf_lottery.ticket.hub_error.SECONDS", 0.2)
    hub.fault = Fault(0, "silence", onwards=True)
    with pytest.raises(HubError, match="was not published in you/ticket: the Hub cannot be reached"):
        Ticket.push_folder(folders[0], "you/ticket", token=TOKEN)


def test_a_full_disk_under_the_cache(hub, folders, monkeypatch):
    Ticket.push_folder(folders[0], "you/ticket", token=TOKEN)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "blob")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(HubError, match=r"No space left on device \(blob\); HF_HOME says where"):
        Ticket.from_pretrained("you/ticket")


def test_a_gated_repository(hub, folders):
    Ticket.push_folder(folders[0], "you/ticket", token=TOKEN)
    hub.gated.add("you/ticket")
    with pytest.raises(HubError, match="you/ticket is gated; ask for access"):
        Ticket.from_pretrained("you/ticket")


def test_a_revision_that_is_not_there(hub, folders):
    Ticket.push_folder(folders[0], "you/ticket", token=TOKEN)
    with pytest.raises(HubError, match="you/ticket has no such revision"):
        Ticket.from_pretrained("you/ticket", revision="v9")


def test_what_is_in_the_cache_needs_no_hub(hub, folders, monkeypatch):
    Ticket.push_folder(folders[0], "you/ticket", token=TOKEN)
    expected = Ticket.from_pretrained("you/ticket").mask
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    assert Ticket.from_pretrained("you/ticket").mask == expected


# --- the command line


def cli(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hf_lottery", *words],
        cwd=folder,
        env={
            **{key: value for key, value in os.environ.items() if key != "HF_TOKEN"},
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode, done.stdout
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["push", "old", "you/ticket"], 1, "was not published in you/ticket: the Hub cannot be reached"),
        (["show", "nothing"], 2, "there is no folder 'nothing'"),
        (["show", "./you/ticket"], 2, "there is no folder './you/ticket'"),
        (["show", "old/ticket.json"], 2, "is a file"),
        (["push", "nothing", "you/ticket"], 2, "there is no folder 'nothing'"),
        (["push", "you/nothing", "you/ticket"], 2, "there is no folder 'you/nothing'"),
        (["push", "old", "not an id"], 2, "not an id"),
        (["export", "you/ticket", "--to", "merged"], 2, "there is no folder 'you/ticket'"),
    ],
)
def test_without_network(folders, words, status, said):
    code, last = cli(folders[0].parent, *words, HF_ENDPOINT=NOWHERE, HF_TOKEN="hf_x")
    assert code == status and said in last


def test_show_without_network_says_both(folders):
    code, last = cli(folders[0].parent, "show", "you/ticket", HF_ENDPOINT=NOWHERE)
    assert code == 1
    assert re.search("there is no folder 'you/ticket' here, and .* the Hub cannot be reached", last)


def test_offline(folders):
    code, last = cli(folders[0].parent, "show", "you/ticket", HF_HUB_OFFLINE="1")
    assert code == 1 and "HF_HUB_OFFLINE is set; unset it" in last


@pytest.mark.parametrize(("token", "said"), [(None, "hf auth login"), ("hf_other", "hf_other"), ("hf_no", "hf auth")])
def test_without_a_token_that_may(hub, folders, token, said):
    environment = {"HF_ENDPOINT": hub.url} | ({"HF_TOKEN": token} if token else {})
    code, last = cli(folders[0].parent, "push", "old", "you/ticket", **environment)
    assert code == 1 and "was not published in you/ticket" in last
    assert (said in last) == (token != "hf_other")
    assert "you/ticket" not in hub.repositories
