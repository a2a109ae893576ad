"""Every block of `docs/python.md` runs, in order, in one folder; the Hub is one on loopback."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from hermetiq import cli
from hermetiq.api import verify as verifying
from hermetiq.publish import Hub, run
from hermetiq.release_recipe import Calibration, Publishing, ReleaseRecipe, Thresholds
from tests.fixtures.models import tiny_checkpoint
from tests.fixtures.verified import all_pass
from tests.publish.hub_server import TOKEN, HubServer

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer().running() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(run, "Hub", lambda tick: Hub(HfApi(endpoint=server.endpoint), tick=tick))
        yield server


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_every_block_runs(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verifying, "hold_against", all_pass)
    tiny_checkpoint(tmp_path / "path" / "to" / "model", tokenizer="bpe")
    script: dict[str, Any] = {}

    def python(text: str) -> None:
        (tmp_path / "block.py").write_text(text)
        script.update(runpy.run_path("block.py", init_globals=script))

    def shell(text: str) -> None:
        for program, *arguments in map(str.split, text.splitlines()):
            assert program == "hermetiq"
            with pytest.raises(SystemExit) as stop:
                cli.main(arguments)
            assert not stop.value.code, (arguments, capsys.readouterr())

    readers = {
        "python": python,
        "yaml": lambda text: (tmp_path / "release.yml").write_text(text),
        "sh": shell,
    }
    for kind, text in BLOCKS:
        readers[kind](text)
    assert [kind for kind, _ in BLOCKS] == ["python", "python", "yaml", "sh", "python"]
    assert set(hub.repos) == {"ada/Hermes-GGUF", "ada/Hermes-GPTQ"}
    assert hub.repos["ada/Hermes-GGUF"].private
    assert not hub.repos["ada/Hermes-GPTQ"].private
    shown = capsys.readouterr().out
    for line in ("100% ", "out", "unknown recipe in 'gguf:Q9'", "/ada/Hermes-GGUF"):
        assert line in shown


def test_the_table_has_every_field() -> None:
    table = PAGE[PAGE.index("| field |") :]
    told = set(re.findall(r"`\.?(?:calibration\.|thresholds\.|publish\.)?(\w+)`", table))
    sections = {"calibration", "thresholds", "publish"}
    for kind in (ReleaseRecipe, Calibration, Thresholds, Publishing):
        assert set(kind.model_fields) - sections <= told
