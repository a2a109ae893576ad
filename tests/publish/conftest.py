"""A Hub on loopback and a client of it whose waits take no time."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import _http

from hermetiq.publish import Hub
from tests.publish.hub_server import TOKEN, HubServer


@pytest.fixture(scope="session")
def running_server() -> Iterator[HubServer]:
    with HubServer().running() as server:
        yield server


@pytest.fixture
def server(running_server: HubServer) -> HubServer:
    """The server, empty."""
    fresh = HubServer()
    fresh.endpoint = running_server.endpoint
    running_server.__dict__.update(fresh.__dict__)
    return running_server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait of the client's, which takes no time; the library's own are in `library_waits`."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    # The other way of sending needs a server of its own kind.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return []


@pytest.fixture
def hub(server: HubServer, waits: list[float]) -> Hub:
    return Hub(HfApi(endpoint=server.endpoint, token=TOKEN), sleep=waits.append)
