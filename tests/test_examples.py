"""The scripts in `examples/` do what they say, on a model that fits a test."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pytest

from hermetiq.api import verify as verifying
from hermetiq.manifest import Manifest
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint
from tests.fixtures.verified import all_pass

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return int(stop.value.code or 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hermetiq.verify` does is tested where the command runs it."""
    monkeypatch.setattr(verifying, "hold_against", all_pass)


def test_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_checkpoint(tmp_path / "model", tokenizer="bpe")
    assert run(monkeypatch, "release.py", model, tmp_path / "out") == 0
    told = capsys.readouterr()
    assert told.out.count("pass") == 2
    assert "100%" in told.err
    assert len(Manifest.read(tmp_path / "out").verification) == 2


def test_smoke_test(
    trained_hermes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "smoke_test.py", trained_hermes) == 0
    broken = copy_of(trained_hermes, tmp_path / "broken")
    edit_json(broken / "config.json", eos_token_id=2)
    assert run(monkeypatch, "smoke_test.py", broken) == 1
    assert "eos-mismatch" in capsys.readouterr().out
    assert run(monkeypatch, "smoke_test.py", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_publish_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = shutil.copy(EXAMPLES / "release.yml", tmp_path)
    tiny_checkpoint(tmp_path / "model", tokenizer="bpe")
    assert run(monkeypatch, "publish_dry_run.py", recipe) == 0
    assert "ada/Hermes-Mini-GGUF@main  Hermes-Mini-Q4_K_M.gguf" in capsys.readouterr().out
    assert all(artifact.imatrix for artifact in Manifest.read(tmp_path / "out").artifacts)


def test_every_example_has_a_test() -> None:
    tested = {f"test_{path.stem.removeprefix('test_')}" for path in EXAMPLES.glob("*.py")}
    assert tested <= set(globals())
