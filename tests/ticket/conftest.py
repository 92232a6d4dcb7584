"""A Hub on 127.0.0.1, for the tests that publish and download."""

from __future__ import annotations

import huggingface_hub
import pytest

from tests.hub_server import HubServer

TOKEN = "hf_you"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, and this process's client pointed at it, with a cache of its own and no token at hand."""
    with HubServer({TOKEN: "you", "hf_other": "other"}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
