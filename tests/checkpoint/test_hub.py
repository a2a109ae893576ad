"""Hub ids: a pinned snapshot, few files, and one plain sentence for whatever goes wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.hub import ALLOWED, IGNORED, is_hub_id, snapshot
from hermetiq.errors import HermetiqError, Refusal
from tests.fixtures.models import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "x" * 34


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("hub") / "model", tokenizer="bpe", shards=2)


@pytest.fixture
def cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's own cache, holding one model: blobs, links to them, a branch; and no way out of the machine."""
    repo = tmp_path / "cache" / "models--org--tiny-chat"
    shot = repo / "snapshots" / COMMIT
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    shot.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(model.iterdir())):
        (repo / "blobs" / f"{number:064x}").write_bytes(file.read_bytes())
        (shot / file.name).symlink_to(f"../../blobs/{number:064x}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return shot


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_model_opens_offline(model: Path, revision: str | None) -> None:
    checkpoint = open_checkpoint("org/tiny-chat", revision=revision)
    assert (checkpoint.provenance.name, checkpoint.provenance.revision) == ("tiny-chat", COMMIT)
    assert checkpoint.fingerprint() == open_checkpoint(model).fingerprint()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("repo", "revision"), [("org/other", None), ("org/tiny-chat", "v2")])
def test_offline_and_not_cached(repo: str, revision: str | None) -> None:
    with pytest.raises(HermetiqError, match="not in the local cache") as error:
        open_checkpoint(repo, revision=revision)
    assert repo in error.value.where
    assert "HF_HUB_OFFLINE" in error.value.remedy


def test_a_snapshot_that_links_elsewhere_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (cache / "added_tokens.json").unlink(missing_ok=True)
    (cache / "added_tokens.json").symlink_to(tmp_path / "secret")
    with pytest.raises(Refusal, match=r"added_tokens\.json.*a link out of the folder"):
        open_checkpoint("org/tiny-chat")


def test_an_incomplete_snapshot_is_refused(cache: Path) -> None:
    (cache / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(HermetiqError, match=r"model-00001-of-00002\.safetensors"):
        open_checkpoint("org/tiny-chat")


def test_asks_for_the_files_of_an_export_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert snapshot("org/name", revision="v1") == tmp_path
    assert asked == {
        "repo": "org/name",
        "revision": "v1",
        "allow_patterns": list(ALLOWED),
        "ignore_patterns": list(IGNORED),
    }


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("config.json", True),
        ("model-00001-of-00003.safetensors", True),
        ("chat_template.jinja", True),
        ("tokenizer.model", True),
        ("merges.txt", True),
        ("LICENSE.txt", True),
        ("mergekit_config.yml", True),
        ("pytorch_model.bin", False),
        ("modeling_evil.py", False),
        ("consolidated.safetensors", False),
        ("onnx/config.json", False),
        ("model.gguf", False),
    ],
)
def test_which_files_are_wanted(file: str, wanted: bool) -> None:
    assert list(
        huggingface_hub.utils.filter_repo_objects([file], allow_patterns=list(ALLOWED), ignore_patterns=list(IGNORED))
    ) == ([file] if wanted else [])


def http_error(kind: type[Exception]) -> Exception:
    """As the library makes them: with a response, whose request carries the token."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"401 for url, Authorization: Bearer {TOKEN}")
    error.response = SimpleNamespace(status_code=401)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (http_error(errors.GatedRepoError), "restricted"),
        (http_error(errors.RepositoryNotFoundError), "no such model"),
        (http_error(errors.RevisionNotFoundError), "no such revision"),
        (http_error(errors.DisabledRepoError), "disabled"),
        (http_error(errors.HfHubHTTPError), "HfHubHTTPError"),
        (errors.LocalEntryNotFoundError(TOKEN), "not in the local cache"),
        (errors.HFValidationError(TOKEN), "not a valid Hub id"),
        (errors.XetDownloadError(TOKEN), "XetDownloadError"),
        (OSError(28, "No space left on device"), "No space left"),
        (ConnectionError(TOKEN), "ConnectionError"),
        (ValueError(TOKEN), "ValueError"),
    ],
)
def test_every_error_is_one_sentence_without_a_token(
    monkeypatch: pytest.MonkeyPatch, error: Exception, meaning: str
) -> None:
    def download(repo: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(HermetiqError, match=meaning) as raised:
        snapshot("org/name", revision="v1")
    message = str(raised.value)
    assert message.startswith("org/name@v1: ")
    assert TOKEN not in message
    assert "\n" not in message
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("org/name", True), ("a/b.c-d_1", True)),
        *((text, False) for text in ("name", "a/b/c", "../x", "/etc", "org/", "org/../x", "http://x", "", "org/na me")),
    ],
)
def test_what_looks_like_an_id(text: str, expected: bool) -> None:
    assert is_hub_id(text) is expected
