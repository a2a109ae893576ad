"""One door: which kind of source a path is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hermetiq.checkpoint import open as door
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.adapter import AdapterCheckpoint
from hermetiq.checkpoint.folder import FolderCheckpoint
from hermetiq.errors import HermetiqError
from tests.fixtures.models import tiny_checkpoint, write_json


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("open") / "model", tokenizer="bpe")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    folder = tmp_path / "lora"
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]})
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 64), f"{module}.lora_B.weight": torch.ones(64, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, model: Path) -> list[tuple[str, str | None]]:
    """What was asked of the Hub, which has one model."""
    asked: list[tuple[str, str | None]] = []

    def snapshot(repo: str, *, revision: str | None = None) -> Path:
        asked.append((repo, revision))
        return model

    monkeypatch.setattr(door, "snapshot", snapshot)
    return asked


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder(model: Path, kind: Any) -> None:
    assert isinstance(open_checkpoint(kind(model)), FolderCheckpoint)


def test_a_hub_id_with_its_revision(hub: list[tuple[str, str | None]]) -> None:
    assert isinstance(open_checkpoint("org/name", revision="v1"), FolderCheckpoint)
    assert hub == [("org/name", "v1")]


def test_a_local_path_comes_before_a_hub_id(
    model: Path, monkeypatch: pytest.MonkeyPatch, hub: list[tuple[str, str | None]]
) -> None:
    monkeypatch.chdir(model.parent.parent)
    relative = f"{model.parent.name}/model"
    assert open_checkpoint(relative).path == Path(relative)
    assert hub == []


def test_an_adapter(model: Path, lora: Path) -> None:
    checkpoint = open_checkpoint(model, adapter=lora)
    assert isinstance(checkpoint, AdapterCheckpoint)
    name = "model.layers.0.self_attn.q_proj.weight"
    difference = checkpoint.load(name) - open_checkpoint(model).load(name)
    torch.testing.assert_close(difference, torch.full((64, 64), 2 * 8 / 2))


def test_an_adapter_of_the_hub(
    model: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, hub: list[tuple[str, str | None]]
) -> None:
    monkeypatch.setattr(door, "snapshot", lambda repo, *, revision: lora)
    assert isinstance(open_checkpoint(model, adapter="org/lora"), AdapterCheckpoint)


def test_a_gguf_file_is_left_to_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ModuleType("gguf_source")
    reader.GgufCheckpoint = lambda path: ("gguf", path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hermetiq.checkpoint.gguf_source", reader)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert open_checkpoint(tmp_path / "m.gguf") == ("gguf", tmp_path / "m.gguf")


@pytest.mark.parametrize("path", ["no-such-folder", "a/b/c", "../nothing/here", "x" * 5000, "bad\0name", ""])
def test_nothing_there(path: str) -> None:
    with pytest.raises(HermetiqError):
        open_checkpoint(path)


@pytest.mark.parametrize("file", ["a.gguf", "gguf/a.gguf"])
def test_a_folder_of_gguf_files_names_them(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    (tmp_path / "hermetiq.json").touch()
    with pytest.raises(HermetiqError, match=rf"a folder of GGUF files.*{file}"):
        open_checkpoint(tmp_path)


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(HermetiqError, match="nothing of a model"):
        open_checkpoint(tmp_path)


def test_a_file_that_is_no_gguf(model: Path) -> None:
    with pytest.raises(HermetiqError, match="not a folder"):
        open_checkpoint(model / "model.safetensors")


def test_a_folder_that_may_not_be_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not bind root, so the question itself is answered.
    monkeypatch.setattr(door.os, "access", lambda path, mode: False)
    with pytest.raises(HermetiqError, match="may not be read"):
        open_checkpoint(model)


def test_an_adapter_that_is_a_file(model: Path, lora: Path) -> None:
    with pytest.raises(HermetiqError, match="not a folder"):
        open_checkpoint(model, adapter=lora / "adapter_model.safetensors")


def test_a_revision_of_a_local_path(model: Path) -> None:
    with pytest.raises(HermetiqError, match="no revision"):
        open_checkpoint(model, revision="main")
