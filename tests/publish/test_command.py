"""`hermetiq publish` at the terminal: its plan, its result, and its exit status."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hermetiq import cli
from hermetiq.errors import HermetiqError
from hermetiq.manifest import Manifest
from hermetiq.publish import Hub, prepare, publish, run
from hermetiq.publish.split import parts
from tests.publish.hub_server import TOKEN, HubServer
from tests.publish.release import SPECS, passed, small_export

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("plain_cards"),
]


def called(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["publish", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture
def here(server: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server, in the place of the Hub that the command speaks to."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(run, "Hub", lambda tick: Hub(HfApi(endpoint=server.endpoint), sleep=waits.append, tick=tick))
    return server


def test_a_dry_run_shows_the_plan_and_asks_nobody(
    tmp_path: Path, here: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    small_export(tmp_path / "out", SPECS)
    assert called(tmp_path / "out", "ada/Hermes", "--base-model", "ada/Fine", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert re.search(r"ada/Hermes-EXL2\s+4\.65bpw\s+model\.safetensors\s+0\.0 MB\s+[0-9a-f]{16}", shown)
    assert "ada/Fine; licence apache-2.0" in shown
    assert called(tmp_path / "out", "ada/Hermes", "--base-model", "ada/Fine", "--dry-run", "--json") == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(plan) == {"layout", "repos", "bytes", "licence", "base_model", "forced"}
    assert [repo["id"] for repo in plan["repos"]] == [f"ada/Hermes-{name}" for name in ("GGUF", "GPTQ", "AWQ", "EXL2")]
    assert here.requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_release_ends_with_its_addresses(tmp_path: Path, here: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    small_export(tmp_path / "out", SPECS[:1])
    options = ("--base-model", "ada/Fine", "--private")
    assert called(tmp_path / "out", "ada/Hermes", *options) == 0
    told = capsys.readouterr()
    assert told.out == f"{here.endpoint}/ada/Hermes-GGUF\n"
    assert TOKEN not in told.out + told.err
    assert here.repos["ada/Hermes-GGUF"].private
    assert called(tmp_path / "out", "ada/Hermes", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "urls": [f"{here.endpoint}/ada/Hermes-GGUF"],
        "commits": {"ada/Hermes-GGUF@main": here.repos["ada/Hermes-GGUF"].heads["main"]},
    }


def test_the_commands_of_the_documentation_run(
    tmp_path: Path, here: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "publish.md").read_text(encoding="utf-8")
    commands = [line.split() for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in text.splitlines()]
    small_export(tmp_path / "OUT")
    monkeypatch.chdir(tmp_path)
    for program, command, *arguments in commands:
        assert (program, command) == ("hermetiq", "publish")
        assert called(*arguments) == 0, capsys.readouterr()
    assert len(commands) == 3
    assert set(here.repos) == {"ada/Hermes-All", *(f"ada/Hermes-{name}" for name in ("GGUF", "GPTQ", "AWQ", "EXL2"))}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("Hermes", "--base-model", "a/b"), 2, "not a valid Hub id"),
        (("ada/Hermes",), 2, "does not say which model on the Hub was quantized"),
        (("ada/Hermes", "--base-model", "b"), 2, "does not say which model"),
        (("ada/Hermes", "--base-model", "a/b", "--license", "my own"), 2, "names no licence"),
        (("grace/Hermes", "--base-model", "a/b"), 2, "ada does not belong to it"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, here: HubServer, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int,
    message: str,
) -> None:  # fmt: skip
    small_export(tmp_path / "out", SPECS[:1])
    assert called(tmp_path / "out", *arguments) == status
    assert message in capsys.readouterr().err


def test_no_export_and_an_unverified_one(tmp_path: Path, here: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(tmp_path, "ada/Hermes") == 2
    made = small_export(tmp_path / "out", SPECS[:1])
    Manifest(made.source, made.artifacts).write(tmp_path / "out")
    assert called(tmp_path / "out", "ada/Hermes", "--base-model", "a/b") == 1
    assert "never verified" in capsys.readouterr().err


def test_a_gguf_above_the_limit_is_split_once_though_the_run_is_cut(
    exported_hermes: Path, tmp_path: Path, here: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Manifest.read(exported_hermes)
    artifact = next(each for each in made.artifacts if each.spec == "gguf:Q8_0")
    whole = tmp_path / "out" / artifact.file
    whole.parent.mkdir(parents=True)
    shutil.copy(exported_hermes / artifact.file, whole)
    Manifest(made.source, (artifact,), verification={artifact.file: passed(artifact)}).write(tmp_path / "out")
    limit, here.part = 12_000_000, 4_000_000
    job = prepare(tmp_path / "out", "ada/Hermes", base_model="a/b", license="mit", limit=limit)
    here.read_only = {"ada/Hermes-GGUF"}
    with pytest.raises(HermetiqError, match="403"):
        publish(job)
    here.read_only = set()
    monkeypatch.setattr(run, "split", lambda *arguments: pytest.fail("split again"))
    publish(job)
    names = {f"tiny-hermes-Q8_0/{part.name}": part.bytes for part in parts(whole, limit)}
    held = here.read("ada/Hermes-GGUF", "main")
    assert len(names) > 1
    assert {name: len(held[name]) for name in held if name.endswith(".gguf")} == names
    assert not (tmp_path / "out.publishing").exists()
