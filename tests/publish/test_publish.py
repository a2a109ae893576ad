"""Whole releases with the real client against the Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.publish import Hub, Layout, prepare, publish
from tests.publish.hub_server import HubServer
from tests.publish.release import SPECS, small_export

# The library's own way to send bytes, which its HTTP client would like otherwise.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("plain_cards"),
]

BASE = "ada/Hermes-Fine"


def release(folder: Path, hub: Hub, **options: object) -> dict[str, str]:
    job = prepare(folder, "ada/Hermes", base_model=BASE, **options)  # type: ignore[arg-type]
    return dict(publish(job, hub=hub).commits)


def test_every_repo_and_branch_holds_the_exports_bytes(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    folder = tmp_path / "out"
    manifest = small_export(folder)
    commits = release(folder, hub)
    assert set(server.repos) == {f"ada/Hermes-{name}" for name in ("GGUF", "GPTQ", "AWQ", "EXL2")}
    assert len(commits) == 7
    for place, commit in commits.items():
        repo, _, branch = place.partition("@")
        assert server.repos[repo].heads[branch] == commit
        held = server.read(repo, branch)
        listed = json.loads(held.pop("hermetiq-files.json"))["files"]
        assert {path: hashlib.sha256(data).hexdigest() for path, data in held.items()} == {
            path: entry["sha256"] for path, entry in listed.items()
        }
        for path, entry in listed.items():
            if entry["origin"]:
                assert entry["sha256"] == manifest.files[entry["origin"]], path
    published = [
        entry["origin"]
        for repo in server.repos.values()
        for branch in repo.heads
        for entry in json.loads(repo.tree(branch)["hermetiq-files.json"].content)["files"].values()  # type: ignore[index]
    ]
    assert set(filter(None, published)) == set(manifest.files)
    assert not folder.with_name("out.publishing").exists()


def test_one_commit_for_each_branch(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out")
    release(tmp_path / "out", hub)
    commits = [path for method, path in server.requests if method == "POST" and "/commit/" in path]
    assert len(commits) == len(set(commits)) == 7
    mains = [index for index, path in enumerate(commits) if path.endswith("/commit/main")]
    assert mains == list(range(3, 7)), "main announces the others, so it comes last"


def test_published_again_nothing_is_sent_or_committed(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out")
    first = release(tmp_path / "out", hub)
    server.requests.clear()
    server.received = 0
    assert release(tmp_path / "out", hub) == first
    assert server.received == 0
    assert not [path for method, path in server.requests if "/commit/" in path]


def test_a_new_release_takes_away_what_the_old_one_left_and_keeps_what_others_added(
    tmp_path: Path, server: HubServer, hub: Hub
) -> None:
    small_export(tmp_path / "old", SPECS[:2])
    release(tmp_path / "old", hub)
    repo = server.repos["ada/Hermes-GGUF"]
    tree = dict(repo.tree("main") or {})
    tree["picture.png"] = tree["README.md"]
    repo.move("main", repo.heads["main"], tree)
    small_export(tmp_path / "new", SPECS[1:2], seed=1)
    release(tmp_path / "new", hub)
    held = server.read("ada/Hermes-GGUF", "main")
    assert set(held) == {
        "README.md", "hermetiq.json", "hermetiq-files.json", "Hermes-Q4_K_M.gguf", "picture.png",
    }  # fmt: skip
    assert held["Hermes-Q4_K_M.gguf"] == (tmp_path / "new" / "gguf" / "Hermes-Q4_K_M.gguf").read_bytes()


def test_one_repo_for_all(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out")
    release(tmp_path / "out", hub, layout=Layout.single)
    assert set(server.repos) == {"ada/Hermes"}
    assert len(server.repos["ada/Hermes"].heads) == 6


def test_somebody_elses_repo_is_left_alone(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out")
    server.repo("ada/Hermes-AWQ", {"README.md": b"mine", "model.safetensors": b"weights"})
    with pytest.raises(Refusal, match=r"repo-not-ours: found README\.md, model\.safetensors"):
        release(tmp_path / "out", hub)
    assert set(server.repos) == {"ada/Hermes-AWQ"}
    assert server.read("ada/Hermes-AWQ", "main") == {"README.md": b"mine", "model.safetensors": b"weights"}


def test_an_empty_repo_may_be_filled(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    server.repo("ada/Hermes-GGUF")
    release(tmp_path / "out", hub)
    assert "Hermes-Q8_0.gguf" in server.read("ada/Hermes-GGUF", "main")


def edit_card(server: HubServer, old: str, new: str) -> None:
    repo = server.repos["ada/Hermes-GGUF"]
    tree = dict(repo.tree("main") or {})
    card = tree["README.md"].content.decode()
    assert old in card
    tree["README.md"] = type(tree["README.md"])(card.replace(old, new, 1).encode(), large=False)
    repo.move("main", repo.heads["main"], tree)


def test_text_between_the_markers_survives(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    release(tmp_path / "out", hub)
    edit_card(server, "your text -->\n", "your text -->\nTried on a *toaster*: works.\n")
    small_export(tmp_path / "new", SPECS[:2], seed=1)
    release(tmp_path / "new", hub)
    card = server.read("ada/Hermes-GGUF", "main")["README.md"].decode()
    assert card.count("Tried on a *toaster*: works.") == 1
    assert "Hermes-Q4_K_M.gguf" in card


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("## Files", "## My files", "a card that was changed by hand"),
        ("<!-- hermetiq: end of your text -->", "", "markers are damaged"),
    ],
)
def test_text_elsewhere_on_a_card_is_not_replaced(
    tmp_path: Path, server: HubServer, hub: Hub, old: str, new: str, message: str
) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    release(tmp_path / "out", hub)
    edit_card(server, old, new)
    before = server.read("ada/Hermes-GGUF", "main")
    with pytest.raises(HermetiqError, match=message):
        release(tmp_path / "out", hub)
    assert server.read("ada/Hermes-GGUF", "main") == before


def test_a_card_that_is_no_text_is_not_replaced(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    release(tmp_path / "out", hub)
    repo = server.repos["ada/Hermes-GGUF"]
    tree = dict(repo.tree("main") or {})
    tree["README.md"] = type(tree["README.md"])(b"\xff\xfe", large=False)
    repo.move("main", repo.heads["main"], tree)
    with pytest.raises(HermetiqError, match=r"ada/Hermes-GGUF: README\.md: the card is not UTF-8"):
        release(tmp_path / "out", hub)


def test_a_file_of_ours_that_was_changed_by_hand_is_not_replaced(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", ("awq:4bit-g64",))
    release(tmp_path / "out", hub)
    repo = server.repos["ada/Hermes-AWQ"]
    tree = dict(repo.tree("main") or {})
    tree["config.json"] = type(tree["config.json"])(b"{}", large=False)
    repo.move("main", repo.heads["main"], tree)
    with pytest.raises(Refusal, match=r"ada/Hermes-AWQ@main: config\.json.*changed by hand"):
        release(tmp_path / "out", hub)
    release(tmp_path / "out", hub, force="the edit was a mistake")
    assert server.read("ada/Hermes-AWQ", "main")["config.json"] != b"{}"


def test_a_file_of_somebody_elses_is_not_replaced(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    release(tmp_path / "out", hub)
    repo = server.repos["ada/Hermes-GGUF"]
    tree = dict(repo.tree("main") or {})
    tree["Hermes-Q4_K_M.gguf"] = type(tree["README.md"])(b"theirs", large=True)
    repo.move("main", repo.heads["main"], tree)
    small_export(tmp_path / "new", SPECS[:2])
    with pytest.raises(Refusal, match="repo-not-ours: found a file that is not on our list"):
        release(tmp_path / "new", hub)


def test_no_right_and_no_room_are_seen_before_the_first_byte(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out")
    server.quota = 5_000
    with pytest.raises(HermetiqError, match=r"does not allow it: 403 \(Private repository storage limit reached"):
        release(tmp_path / "out", hub)
    assert server.received == 0
    server.quota = None
    server.read_only = {"ada/Hermes-GGUF"}
    with pytest.raises(HermetiqError, match="403"):
        release(tmp_path / "out", hub)
    server.read_only = set()
    server.role = "read"
    with pytest.raises(HermetiqError, match="the token may only read"):
        release(tmp_path / "out", hub)
    server.role = "write"
    server.user = "grace"
    with pytest.raises(HermetiqError, match="grace does not belong to it"):
        release(tmp_path / "out", hub)
    assert server.received == 0
    assert all(set(tree) == {".gitattributes"} for _, _, tree in server.history)


def test_a_repo_that_may_not_be_written_to_stops_all_others(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out")
    server.repo("ada/Hermes-EXL2")
    server.read_only = {"ada/Hermes-EXL2"}
    with pytest.raises(HermetiqError, match="ada/Hermes-EXL2: the Hub does not allow it: 403"):
        release(tmp_path / "out", hub)
    assert set(server.repos) == {"ada/Hermes-EXL2"}


def test_the_token_goes_to_the_hub_and_not_to_the_storage(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    release(tmp_path / "out", hub)
    assert any(re.fullmatch(r"Bearer hf_\w+", each) for each in server.authorizations)
