"""A published repo is proven by what lies on the Hub, and of that only what the proof needs is asked for."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from hermetiq import cli
from hermetiq.api import verify as api
from hermetiq.calibration.heldout import held_out_chats
from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.manifest import Manifest
from hermetiq.publish import Hub, Layout, fetch, prepare, publish, run
from hermetiq.verify import reference
from tests.publish.hub_server import TOKEN, Fault, HubServer, Stored
from tests.publish.release import SPECS, passed, small_export

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "ada/Hermes"
LISTS = {"main:hermetiq.json", "main:hermetiq-files.json"}
WEIGHTS = "model.safetensors"


@pytest.fixture
def here(
    server: HubServer, waits: list[float], plain_cards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> HubServer:
    """The server in the place of the Hub that everything speaks to, and a cache of its own."""

    def hub(**options: object) -> Hub:
        return Hub(HfApi(endpoint=server.endpoint), sleep=waits.append, **options)  # type: ignore[arg-type]

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(run, "Hub", hub)
    monkeypatch.setattr(api, "Hub", hub)
    return server


def release(server: HubServer, folder: Path, *, layout: Layout = Layout.single, base_model: str = "ada/Fine") -> None:
    """Publish the export in `folder`; the server forgets that it was asked anything."""
    publish(prepare(folder, REPO, layout=layout, base_model=base_model, license="mit"))
    server.requests.clear()


def brought(here: HubServer, folder: Path, *names: str, repo: str = REPO) -> fetch.Found:
    """Find and lay out as `verify` does, without the proof."""
    folder.mkdir(parents=True)
    hub = Hub(HfApi(endpoint=here.endpoint))
    found = fetch.find(hub, repo, folder, names)
    fetch.lay_out(hub, found, folder)
    return found


def asked_for(server: HubServer) -> set[str]:
    """Files of which anything was asked, as BRANCH:PATH."""
    files = set()
    for _, path in server.requests:
        repo, _, rest = path[1:].partition("/resolve/")
        if rest:
            commit, _, file = rest.partition("/")
            files |= {f"{branch}:{file}" for branch, head in server.repos[repo].heads.items() if head == commit}
    return files


def changed(server: HubServer, branch: str, path: str, content: bytes, repo: str = REPO) -> None:
    """Somebody commits another content of a file."""
    there = server.repos[repo]
    tree = there.tree(branch) or {}
    there.move(branch, there.heads[branch], {**tree, path: Stored(content, large=tree[path].large)})


def called(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", *map(str, arguments)])
    return int(stop.value.code or 0)


def nothing_left(tmp_path: Path) -> bool:
    """Whether the cache holds whole repos and nothing else."""
    repos = list((tmp_path / "cache").glob("models--*"))
    return all((repo / "snapshots").is_dir() and not list(repo.glob("verify-*")) for repo in repos)


def test_a_split_gguf_is_proven_from_its_parts(
    exported_hermes: Path, trained_hermes: Path, tmp_path: Path, here: HubServer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # A few chats do: how much they prove is no matter here.
    monkeypatch.setattr(reference, "held_out_chats", lambda: held_out_chats()[::8])
    made = Manifest.read(exported_hermes)
    artifact = next(each for each in made.artifacts if each.spec == "gguf:Q8_0")
    (tmp_path / "out" / "gguf").mkdir(parents=True)
    shutil.copy(exported_hermes / artifact.file, tmp_path / "out" / artifact.file)
    Manifest(made.source, (artifact,), verification={artifact.file: passed(artifact)}).write(tmp_path / "out")
    here.part = 4_000_000
    publish(prepare(tmp_path / "out", REPO, base_model="ada/Fine", license="mit", limit=12_000_000))
    here.requests.clear()
    history = len(here.history)
    junit = tmp_path / "checks.xml"
    assert called("ada/Hermes-GGUF", "--source", trained_hermes, "--json", "--junit", junit) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["file"], told["passed"]) == (artifact.file, True)
    assert {check["name"] for check in told["checks"]} >= {"bytes", "contract", "kl"}
    assert "bytes" in junit.read_text()
    parts = {f"main:{path}" for path in here.read("ada/Hermes-GGUF", "main") if path.endswith(".gguf")}
    assert len(parts) > 1
    assert asked_for(here) == LISTS | parts
    assert len(here.history) == history
    assert {method for method, _ in here.requests} == {"GET", "HEAD"}
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("layout", "repo", "names", "files"),
    [
        (Layout.single, REPO, ("gguf:Q8_0",), {"main:Hermes-Q8_0.gguf"}),
        (Layout.single, REPO, ("Hermes-Q4_K_M.gguf",), {"main:Hermes-Q4_K_M.gguf"}),
        (
            Layout.single,
            REPO,
            ("gptq:4bit-g64",),
            {f"gptq-4bit-g64:{name}" for name in ("hermetiq-files.json", "LICENSE", "config.json", WEIGHTS)},
        ),
        (
            Layout.per_format,
            f"{REPO}-EXL2",
            ("exl2-3.0bpw",),
            {f"3.0bpw:{name}" for name in ("hermetiq-files.json", "LICENSE", "config.json", WEIGHTS)},
        ),
        (Layout.per_format, f"{REPO}-GGUF", (), {"main:Hermes-Q8_0.gguf", "main:Hermes-Q4_K_M.gguf"}),
    ],
)
def test_only_what_is_needed_is_asked_for(
    tmp_path: Path, here: HubServer, layout: Layout, repo: str, names: tuple[str, ...], files: set[str]
) -> None:
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out", layout=layout)
    found = brought(here, tmp_path / "laid", *names, repo=repo)
    assert asked_for(here) == LISTS | files
    assert found.manifest == Manifest.read(tmp_path / "laid")
    # A second look is answered by the cache.
    here.requests.clear()
    brought(here, tmp_path / "again", *names, repo=repo)
    assert {file.partition(":")[2] for file in asked_for(here)} <= {"hermetiq.json", "hermetiq-files.json"}


@pytest.mark.parametrize("layout", list(Layout))
def test_what_is_laid_out_is_what_was_exported(tmp_path: Path, here: HubServer, layout: Layout) -> None:
    made = small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out", layout=layout)
    seen = 0
    for number, repo in enumerate(sorted(here.repos)):
        laid = tmp_path / f"laid{number}"
        found = brought(here, laid, repo=repo)
        for item in found.manifest.artifacts:
            for name in item.files:
                assert (laid / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        seen += len(found.held)
        assert len(found.held) + len(found.elsewhere) == len(made.artifacts)
        assert found.base_model == "ada/Fine"
    assert seen == len(made.artifacts)


def test_the_model_that_the_release_names_is_the_source(
    tmp_path: Path, here: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def open_source(folder: Path, path: str, **options: object) -> None:
        opened.append(path)
        raise HermetiqError("seen")

    monkeypatch.setattr(api, "open_source", open_source)
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out")
    assert called(REPO) == called(REPO, "--source", "elsewhere") == 2
    assert opened == ["ada/Fine", "elsewhere"]
    assert not any(".gguf" in file or WEIGHTS in file for file in asked_for(here))
    release(here, tmp_path / "out", base_model="none")
    capsys.readouterr()
    assert called(REPO) == 2
    assert "give --source" in capsys.readouterr().err
    assert nothing_left(tmp_path)


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How the proof was asked for, and what lay in its folder; it is not made."""
    seen: list[dict[str, Any]] = []

    def hold_against(folder: Path, source: object, **options: Any) -> tuple[()]:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        seen.append({"source": source, "files": files, **options})
        return ()

    monkeypatch.setattr(api, "open_source", lambda folder, path, **options: path)
    monkeypatch.setattr(api, "require_source", lambda folder, manifest, source: None)
    monkeypatch.setattr(api, "hold_against", hold_against)
    return seen


def test_the_commands_of_the_documentation_run(
    tmp_path: Path, here: HubServer, proven: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
    commands = [line.split() for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in text.splitlines()]
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out", layout=Layout.per_format)
    monkeypatch.chdir(tmp_path)
    for program, command, *arguments in commands:
        assert (program, command) == ("hermetiq", "verify")
        assert called(*arguments) == 0
    gguf, exl2 = proven
    assert (gguf["source"], gguf["files"]) == ("ada/Fine", {"hermetiq.json", "gguf/Hermes-Q4_K_M.gguf"})
    folders = {path.partition("/")[0] for path in exl2["files"]}
    assert (exl2["source"], folders) == ("model", {"hermetiq.json", "exl2-4.65bpw", "exl2-3.0bpw"})
    assert nothing_left(tmp_path)


def test_limits_of_other_repos_are_let_be(tmp_path: Path, here: HubServer, proven: list[dict[str, Any]]) -> None:
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out", layout=Layout.per_format)
    limits = {"gguf": 0.5, "gguf:Q4_K_M": 0.6, "gptq": 0.7, "exl2:3.0bpw": 0.8, "gguf:Q4_KM": 0.9}
    done = api.verify_published(f"{REPO}-GGUF", "model", max_kl=limits)
    # The misspelt one stays, to be refused.
    assert proven[0]["max_kl"] == {"gguf": 0.5, "gguf:Q4_K_M": 0.6, "gguf:Q4_KM": 0.9}
    assert len(done.elsewhere) == len(SPECS) - 2


@pytest.mark.parametrize(
    ("branch", "path"),
    [
        ("main", "Hermes-Q8_0.gguf"),
        ("gptq-4bit-g64", "config.json"),
        ("gptq-4bit-g64", WEIGHTS),
        ("main", "hermetiq.json"),
    ],
)
def test_a_changed_byte_is_refused_before_anything_large_is_sent(
    tmp_path: Path, here: HubServer, capsys: pytest.CaptureFixture[str], branch: str, path: str
) -> None:
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out")
    before = here.read(REPO, branch)[path]
    changed(here, branch, path, before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
    assert called(REPO, "--source", "x") == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"{REPO}@{branch}: {path}: was changed since it was published" in told
    assert not any(".gguf" in file or WEIGHTS in file for file in asked_for(here))
    assert nothing_left(tmp_path)


def test_a_list_and_a_file_of_another_release_are_refused(tmp_path: Path, here: HubServer) -> None:
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out")
    there = here.repos[REPO]
    old = there.tree("gptq-4bit-g64")
    small_export(tmp_path / "newer", SPECS, seed=1)
    release(here, tmp_path / "newer")
    there.move("gptq-4bit-g64", there.heads["gptq-4bit-g64"], old or {})
    with pytest.raises(CheckFailed, match="another release"):
        brought(here, tmp_path / "laid")


def test_a_file_that_is_gone_is_told(tmp_path: Path, here: HubServer) -> None:
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out")
    there = here.repos[REPO]
    tree = {path: file for path, file in (there.tree("main") or {}).items() if path != "Hermes-Q8_0.gguf"}
    there.move("main", there.heads["main"], tree)
    with pytest.raises(CheckFailed, match=r"Hermes-Q8_0\.gguf: is missing"):
        brought(here, tmp_path / "laid")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b"# Mine\n", "model.safetensors": b"x"}, "hermetiq did not publish this repo"),
        ({"hermetiq-files.json": b"{}"}, "hermetiq did not publish this repo"),
        ({"hermetiq-files.json": b"\xff"}, "hermetiq did not publish this repo"),
    ],
)
def test_a_repo_of_somebody_else_is_refused(
    here: HubServer, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], message: str
) -> None:
    here.repo("bob/Model", files)
    assert called("bob/Model") == 2
    told = capsys.readouterr().err
    assert message in told
    assert "hermetiq publish" in told
    assert asked_for(here) <= {"main:hermetiq-files.json"}


def test_no_repo_and_no_folder(tmp_path: Path, here: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("nobody/nothing", "--source", "x") == 2
    assert "no such folder here, and no such repo on the Hub" in capsys.readouterr().err
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"), [("gguf:Q5_K_M", "takes one of gguf:Q8_0"), ("gptq:4bit-g64", "gptq-4bit-g64 is not in this")]
)
def test_an_artifact_that_is_not_there(
    tmp_path: Path, here: HubServer, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out", layout=Layout.per_format)
    assert called(f"{REPO}-GGUF", "--artifact", name, "--source", "x") == 2
    assert message in capsys.readouterr().err


def test_of_a_folder_nothing_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(tmp_path, "--artifact", "gguf:Q8_0", "--source", "x") == 2
    assert "chooses from a published repo" in capsys.readouterr().err


def test_offline_is_one_sentence(
    tmp_path: Path, here: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert called(REPO) == 2
    assert "HF_HUB_OFFLINE keeps the Hub from being asked" in capsys.readouterr().err
    assert here.requests == []
    assert not (tmp_path / "cache").exists()


def test_a_lost_connection_is_given_up_soon(
    tmp_path: Path, here: HubServer, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    here.fault = lambda method, path: Fault(cut="before")
    assert called(REPO) == 2
    assert "the connection to the Hub was lost" in capsys.readouterr().err
    assert sum(waits) < 10
    assert nothing_left(tmp_path)


def test_a_disk_without_hard_links_is_told(
    tmp_path: Path, here: HubServer, proven: list[object], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def link(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    small_export(tmp_path / "out", SPECS)
    release(here, tmp_path / "out")
    monkeypatch.setattr(os, "link", link)
    assert called(REPO) == 2
    assert "set HF_HUB_CACHE to a folder on a disk with hard links" in capsys.readouterr().err
    assert proven == []
    assert nothing_left(tmp_path)
