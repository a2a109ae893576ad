"""A Hub on loopback, a client of it whose waits take no time, and cards that are made without rendering a template."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http

from hermetiq.publish import Hub, run, usage
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
    """Every wait, ours and the library's, in seconds; none of them is waited."""
    seconds: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=seconds.append))
    # The other way of sending needs a server of its own kind.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # A disk that is slow to promise is no part of these tests.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return seconds


@pytest.fixture
def hub(server: HubServer, waits: list[float]) -> Hub:
    return Hub(HfApi(endpoint=server.endpoint, token=TOKEN), sleep=waits.append)


@pytest.fixture
def plain_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """No template is rendered: each takes a process."""
    monkeypatch.setattr(usage, "recipes", lambda manifest: ())
    monkeypatch.setattr(run, "example", lambda contract: "a chat")
