"""Tensors beside the decoder that a checkpoint has lost, told by its configuration or by its parent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hermetiq.chat.inspect import inspect
from hermetiq.errors import Finding
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("plain") / "m", family="qwen2", tokenizer="bpe", tied=True)


def with_tensors(source: Path, folder: Path, *names: str) -> Path:
    copy = copy_of(source, folder)
    path = copy / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file({**weights, **{name: torch.ones(2, 2) for name in names}}, path, metadata={"format": "pt"})
    return copy


def findings(folder: Path, *parents: Path) -> list[Finding]:
    return list(
        inspect(str(folder), parents=[str(each) for each in parents], weights=False, select=("tensors-lost",)).findings
    )


@pytest.mark.parametrize("name", ["model.layers.2.eh_proj.weight", "mtp.fc.weight", "model.visual.patch.weight"])
def test_what_a_parent_has_beside_the_decoder_is_missed(plain: Path, tmp_path: Path, name: str) -> None:
    parent = with_tensors(plain, tmp_path / "parent", name)
    (item,) = findings(plain, parent)
    assert (item.severity, item.found) == ("error", f"1 tensors of {parent} missing: {name}")


def test_the_first_ten_are_named_and_all_are_counted(plain: Path, tmp_path: Path) -> None:
    parent = with_tensors(plain, tmp_path / "parent", *(f"mtp.{index:02d}.weight" for index in range(14)))
    (item,) = findings(plain, parent)
    assert item.found.startswith("14 tensors of ")
    assert item.found.endswith("mtp.09.weight and 4 more")


def test_a_deeper_parent_one_with_a_head_and_one_with_an_old_buffer_miss_nothing(plain: Path, tmp_path: Path) -> None:
    deeper = tiny_checkpoint(tmp_path / "deeper", family="qwen2", tokenizer="bpe", layers=3)
    old = with_tensors(plain, tmp_path / "old", "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert findings(plain, plain, deeper, old) == []


@pytest.mark.parametrize("stated", [0, None, "1", -1, [1]])
def test_a_configuration_that_asks_for_none_misses_nothing(plain: Path, tmp_path: Path, stated: object) -> None:
    copy = copy_of(plain, tmp_path / "m")
    edit_json(copy / "config.json", num_nextn_predict_layers=stated)
    assert findings(copy) == []


@pytest.mark.parametrize("depth", ["2", None, [], 10**9])
def test_a_parent_that_states_nonsense_breaks_nothing(plain: Path, tmp_path: Path, depth: object) -> None:
    parent = with_tensors(plain, tmp_path / "parent", "mtp.fc.weight")
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({**config, "num_hidden_layers": depth}))
    (item,) = findings(plain, parent)
    assert item.found.endswith("missing: mtp.fc.weight")
