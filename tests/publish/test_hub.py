"""How long the Hub is waited for, and what is said when it is not."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi, hf_api

from hermetiq.errors import HermetiqError
from hermetiq.publish import Hub
from hermetiq.publish.patience import Missing
from tests.publish.hub_server import TOKEN, Fault, HubServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def once(server: HubServer, *faults: Fault) -> None:
    left = list(faults)
    server.fault = lambda method, path: left.pop(0) if left else None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ((("Retry-After", "7"),), 7.0),
        ((("Date", "Wed, 21 Oct 2026 07:28:00 GMT"), ("Retry-After", "Wed, 21 Oct 2026 07:29:30 GMT")), 90.0),
        ((("Date", "Wed, 21 Oct 2026 07:28:00 GMT"), ("Retry-After", "Wed, 21 Oct 2026 07:20:00 GMT")), 0.0),
        ((("ratelimit", '"api";r=0;t=55'),), 55.0),
        ((("Retry-After", "soon"),), 1.0),
        ((), 1.0),
    ],
)
def test_the_servers_time_is_kept(
    server: HubServer, hub: Hub, waits: list[float], header: tuple[tuple[str, str], ...], seconds: float
) -> None:
    once(server, Fault(429, header))
    assert hub.account().name == "ada"
    assert waits == [seconds]


def test_without_a_time_the_waits_grow_and_end(server: HubServer, hub: Hub, waits: list[float]) -> None:
    server.fault = lambda method, path: Fault(503)
    with pytest.raises(HermetiqError, match="the Hub does not answer as it should: 503"):
        hub.account()
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


def test_a_lost_connection_is_tried_again(server: HubServer, hub: Hub, waits: list[float]) -> None:
    once(server, Fault(cut="before"), Fault(cut="after"))
    assert hub.heads("ada/none") is None
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the Hub does not accept the token: 401"),
        (402, "the Hub asks for a payment: 402"),
        (403, "the Hub does not allow it: 403"),
        (404, "the Hub does not know it: 404"),
        (418, "the Hub does not answer as it should: 418"),
    ],
)
def test_a_refusal_is_not_tried_again(
    server: HubServer, hub: Hub, waits: list[float], status: int, message: str
) -> None:
    once(server, Fault(status, message=f"not with {TOKEN} <and a lot more>" + "!" * 500))
    with pytest.raises(HermetiqError, match=message) as told:
        hub.require_writable("ada/x")
    assert waits == []
    assert TOKEN not in str(told.value)
    assert len(str(told.value)) < 500


def test_a_repo_that_is_not_there_is_an_error_where_it_must_be(server: HubServer, hub: Hub) -> None:
    with pytest.raises(Missing):
        hub.require_writable("ada/none")


def test_without_a_token_nobody_is_asked(
    server: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(hf_api, "get_token", lambda: None)
    with pytest.raises(HermetiqError, match=r"not logged in \(run `hf auth login`, or set HF_TOKEN\)"):
        Hub(HfApi(endpoint=server.endpoint)).account()
    assert server.requests == []


def test_a_long_tree_is_read_to_its_end(server: HubServer, hub: Hub) -> None:
    files = {f"file{number:02d}.txt": b"x" * number for number in range(13)}
    repo = server.repo("ada/long", files)
    found = hub.tree("ada/long", repo.heads["main"])
    assert {path: file.bytes for path, file in found.items() if path != ".gitattributes"} == {
        path: len(data) for path, data in files.items()
    }


def test_without_a_network_a_licence_is_soon_unknown() -> None:
    waits: list[float] = []
    nowhere = Hub(api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN), sleep=waits.append)
    assert nowhere.licence("ada/Fine") is None
    assert sum(waits) < 5
