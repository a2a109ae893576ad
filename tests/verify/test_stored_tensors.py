"""Tensors that an artifact must have, by name, in every format."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hermetiq.checkpoint import open_checkpoint
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from hermetiq.verify.stored_tensors import lost
from tests.fixtures.gguf_edits import replace_once
from tests.fixtures.models import tiny_checkpoint
from tests.fixtures.packed import packed_folder


@pytest.fixture(scope="module", params=["untied", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "m"
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", hidden=128, tied=request.param == "tied")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("gptq:4bit-g64", "lm_head.weight"),
        ("gptq:4bit-g64", "model.layers.1.self_attn.q_proj.g_idx"),
        ("awq:4bit-g64", "model.layers.0.self_attn.k_proj.bias"),
        ("awq:4bit-g64", "model.norm.weight"),
        ("exl2:4.65bpw", "lm_head.q_weight"),
        ("exl2:4.65bpw", "model.layers.0.mlp.down_proj.q_groups"),
    ],
)
def test_a_folder_without_one_of_its_tensors_is_told_which(source: Path, tmp_path: Path, spec: str, name: str) -> None:
    folder, model = packed_folder(tmp_path / "m", source, parse(spec)), open_checkpoint(source).model
    (healthy,) = lost(folder, parse(spec), model).checks
    assert healthy.passed
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    del weights[name]
    save_file(weights, path)
    (check,) = lost(folder, parse(spec), model).checks
    assert (check.name, check.passed, check.value, check.limit) == ("tensors-lost", False, 1, 0)
    assert check.reason.startswith("1 of ")
    assert check.reason.endswith(f"tensors are not in the file: {name}")


def test_a_gguf_without_its_tensors_is_told_which_and_how_many(source: Path, tmp_path: Path) -> None:
    spec, model = parse("gguf:Q8_0"), open_checkpoint(source).model
    export(prepare(source, [spec]), tmp_path / "out", threads=1)
    (path,) = (tmp_path / "out/gguf").iterdir()
    assert lost(path, spec, model).checks[0].passed
    for name in ("blk.0.attn_q.bias", "output_norm.weight"):
        replace_once(path, name.encode(), b"x" * len(name))
    (check,) = lost(path, spec, model).checks
    assert (check.passed, check.value) == (False, 2)
    assert check.reason.endswith("not in the file: blk.0.attn_q.bias, output_norm.weight")


def test_what_cannot_be_read_is_left_to_the_contracts_check(source: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    model = open_checkpoint(source).model
    assert lost(tmp_path / "m.gguf", parse("gguf:Q8_0"), model).checks == ()
    assert lost(tmp_path, parse("gptq:4bit-g64"), model).checks == ()
