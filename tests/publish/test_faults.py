"""Releases that the Hub and the network disturb: nothing is lost, nothing is half-published, and no token is told.

Every seed draws its own faults: limits with a time to wait, broken servers, connections cut in the middle of a file or
after the work was done, commits by others, refusals for good. A run that gives up is started again, as its user would.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hermetiq.errors import HermetiqError
from hermetiq.publish import Hub, Layout, prepare, publish
from hermetiq.publish.targets import Item
from tests.publish.hub_server import GIT, TOKEN, Fault, HubServer, Stored
from tests.publish.release import small_export

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("plain_cards"),
]
SPECS = ("gguf:Q8_0", "gptq:4bit-g64", "exl2:3.0bpw")
FAULTS = (
    Fault(429, (("Retry-After", "17"),), message=f"slow down, {TOKEN}"),
    Fault(429, (("ratelimit", '"api";r=0;t=23'),)),
    Fault(500, message=f"broken by {TOKEN}"),
    Fault(503, (("Retry-After", "3"),)),
    Fault(502),
    Fault(cut="before"),
    Fault(cut="after"),
    Fault(cut="after"),
    Fault(409, message="another commit came first"),
    Fault(401, message=f"Invalid token {TOKEN}"),
    Fault(403, message=f"{TOKEN} may not"),
)


@pytest.fixture
def leaks() -> Iterator[list[str]]:
    """Every record of any logger that holds the token, and those of the library that hold a signed address."""
    found: list[str] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage() + repr(record.__dict__.get("exc_text"))
            signed = record.name.startswith("huggingface_hub") and "signature=" in text
            if TOKEN in text or signed:
                found.append(record.name)

    root, watch = logging.getLogger(), Watch(logging.DEBUG)
    level = root.level
    root.addHandler(watch)
    root.setLevel(logging.DEBUG)
    yield found
    root.removeHandler(watch)
    root.setLevel(level)


def complete(tree: Mapping[str, Stored]) -> bool:
    """Whether a branch holds all that its list names, and no more; an untouched one does."""
    held = {path: file.content for path, file in tree.items() if path != GIT}
    if not held:
        return True
    listed = json.loads(held.pop("hermetiq-files.json", b'{"files": {}}'))["files"]
    return {path: Item(path, "", 0, data).blob for path, data in held.items()} == {
        path: Item(path, "", 0, held[path]).blob for path in listed if path in held
    } and listed.keys() == held.keys()


def disturbed(server: HubServer, seed: int) -> None:
    """From now on the server makes faults, until it has made enough of them."""
    draw, left = random.Random(seed), [8]

    def fault(method: str, path: str) -> Fault | None:
        if left[0] and draw.random() < 0.12:
            left[0] -= 1
            return draw.choice(FAULTS)
        return None

    server.fault = fault


@pytest.mark.parametrize("group", range(10))
def test_a_disturbed_release_ends_whole(
    group: int, tmp_path: Path, running_server: HubServer, waits: list[float], leaks: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small_export(tmp_path / "old", (SPECS[0], SPECS[2]))
    small_export(tmp_path / "new", SPECS[:2], seed=1)
    jobs = {
        name: prepare(tmp_path / name, "ada/Hermes", base_model="ada/Fine", layout=Layout.single)
        for name in ("old", "new")
    }
    told: list[str] = []

    def tick(what: str, share: float) -> None:
        told.append(what)

    for seed in range(group * 20, group * 20 + 20):
        server = running_server
        server.repos.clear()
        server.history.clear()
        for name in ("old", "new"):
            # Every second release goes over an earlier one.
            disturbed(server, seed if name == "new" else 1000 + seed)
            if name == "old" and seed % 2:
                continue
            for _ in range(12):
                api = HfApi(endpoint=server.endpoint, token=TOKEN)
                try:
                    hub = Hub(api, sleep=waits.append, tick=tick)
                    publish(jobs[name], hub=hub, tick=tick)
                    break
                except HermetiqError as error:
                    told += [str(error), repr(error.__cause__)]
                    for path in (tmp_path / f"{name}.publishing").glob("*"):
                        assert TOKEN.encode() not in path.read_bytes()
            else:
                pytest.fail(f"seed {seed}: {told[-3:]}")
            server.fault = lambda method, path: None
        check(server, tmp_path / "new", seed)
    assert len(told) > 200
    assert not leaks
    assert not [text for text in (*told, *capfd.readouterr()) if TOKEN in text]


def check(server: HubServer, folder: Path, seed: int) -> None:
    held = {branch: server.read("ada/Hermes", branch) for branch in ("main", "gptq-4bit-g64")}
    assert held["main"]["Hermes-Q8_0.gguf"] == (folder / "gguf" / "Hermes-Q8_0.gguf").read_bytes(), seed
    weights = (folder / "gptq-4bit-g64" / "model.safetensors").read_bytes()
    assert held["gptq-4bit-g64"]["model.safetensors"] == weights, seed
    own = {"README.md", "hermetiq.json", "hermetiq-files.json"}
    assert set(held["main"]) == {"Hermes-Q8_0.gguf", "LICENSE", *own}, seed
    announced: dict[str, bytes] = {}
    for _, branch, tree in server.history:
        assert complete(tree), (seed, branch, sorted(tree))
        if branch == "main" and "README.md" in tree:
            # What the card announces is there by now.
            for named in announced_by(tree["README.md"].content):
                assert announced.get(named) or named == "main", (seed, named)
        elif branch != "main" and len(tree) > 1:
            announced[branch] = tree["model.safetensors"].content
    assert len([1 for _, branch, tree in server.history if branch == "main" and len(tree) > 1]) <= 2, seed


def announced_by(card: bytes) -> set[str]:
    return {line.split("/tree/")[1].split(")")[0] for line in card.decode().splitlines() if "/tree/" in line}


def test_the_hubs_own_times_are_waited(tmp_path: Path, server: HubServer, hub: Hub, waits: list[float]) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    faults = {
        "/api/whoami-v2": Fault(429, (("Retry-After", "120"),)),
        "/api/repos/create": Fault(503),
        "/api/models/ada/Hermes-GGUF/commit/main": Fault(429, (("Retry-After", "3600"),)),
    }
    server.fault = lambda method, path: faults.pop(path, None)
    publish(prepare(tmp_path / "out", "ada/Hermes", base_model="ada/Fine"), hub=hub)
    assert waits == [120.0, 1.0, 3600.0]


def test_a_wait_beyond_all_patience_is_an_error(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    server.fault = lambda method, path: Fault(429, (("Retry-After", "90000"),))
    with pytest.raises(HermetiqError, match="takes no more requests for now: 429"):
        publish(prepare(tmp_path / "out", "ada/Hermes", base_model="ada/Fine"), hub=hub)


def test_after_a_cut_no_byte_is_sent_twice(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", ("gguf:Q8_0", "gguf:Q4_K_M", "gguf:Q6_K"))
    job = prepare(tmp_path / "out", "ada/Hermes", base_model="ada/Fine")
    server.fault = lambda method, path: Fault(403) if "/commit/" in path else None
    with pytest.raises(HermetiqError, match="403"):
        publish(job, hub=hub)
    assert server.received == 9000
    assert set(server.read("ada/Hermes-GGUF", "main")) == set()
    assert (tmp_path / "out.publishing" / "journal.json").exists()
    server.fault = lambda method, path: None
    publish(job, hub=hub)
    assert server.received == 9000
    assert not (tmp_path / "out.publishing").exists()


def test_bytes_that_arrive_wrong_are_not_announced(
    tmp_path: Path, server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_export(tmp_path / "out", ("gptq:4bit-g64", "gptq:8bit-g128"))
    job = prepare(tmp_path / "out", "ada/Hermes", base_model="ada/Fine")

    def damaged(method: str, path: str) -> Fault | None:
        if path.endswith("/commit/gptq-8bit-g128"):
            for oid, data in server.repos["ada/Hermes-GPTQ"].storage.items():
                server.repos["ada/Hermes-GPTQ"].storage[oid] = data[:-1] + b"?"
        return None

    server.fault = damaged
    with pytest.raises(HermetiqError, match=r"does not hold what was sent: model\.safetensors"):
        publish(job, hub=hub)
    assert server.read("ada/Hermes-GPTQ", "main") == {}


def test_what_somebody_commits_meanwhile_stays(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "old", SPECS[:1])
    publish(prepare(tmp_path / "old", "ada/Hermes", base_model="ada/Fine"), hub=hub)
    small_export(tmp_path / "new", SPECS[:1], seed=1)
    repo = server.repos["ada/Hermes-GGUF"]

    def meddle(method: str, path: str) -> Fault | None:
        if path.endswith("/commit/main"):
            server.fault = lambda method, path: None
            tree = {**(repo.tree("main") or {}), "README.md": Stored(b"theirs", large=False)}
            repo.move("main", repo.heads["main"], tree)
        return None

    server.fault = meddle
    with pytest.raises(HermetiqError, match="ada/Hermes-GGUF@main: somebody else changed it meanwhile"):
        publish(prepare(tmp_path / "new", "ada/Hermes", base_model="ada/Fine"), hub=hub)
    held = server.read("ada/Hermes-GGUF", "main")
    assert held["README.md"] == b"theirs"
    assert held["Hermes-Q8_0.gguf"] == (tmp_path / "old" / "gguf" / "Hermes-Q8_0.gguf").read_bytes()
