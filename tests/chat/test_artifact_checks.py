"""Artifacts that are not what they say: layers left whole, and K-quants of rows that they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hermetiq.chat.contract import derive, special_ids
from hermetiq.chat.inspect import inspect
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import Finding
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint
from tests.fixtures.packed import packed_folder, rewrite

RULES = ("not-quantized", "kquant-shape")
DOWN = "model.layers.0.mlp.down_proj"
Q4_K_M, F16 = 15, 1


def findings(path: Path) -> list[Finding]:
    return list(inspect(str(path), weights=False, select=RULES).findings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "plain"
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", layers=1, dtype=torch.float16)


@pytest.fixture(scope="module", params=["gptq:4bit-g32", "awq:4bit-g32", "exl2:4.0bpw"])
def packed(request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_folder(tmp_path_factory.mktemp("packed") / "model", plain, parse(request.param))


def leave_out(folder: Path) -> None:
    """Store one layer as it was."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(DOWN)]:
            del tensors[name]
        tensors[f"{DOWN}.weight"] = torch.randn(64, 128).half()

    rewrite(folder, change)


def test_a_whole_artifact_is_healthy(packed: Path) -> None:
    assert findings(packed) == []


def test_a_layer_left_whole_is_named(packed: Path, tmp_path: Path) -> None:
    folder = copy_of(packed, tmp_path / "broken")
    leave_out(folder)
    (item,) = findings(folder)
    assert (item.rule, item.severity, item.found) == (
        "not-quantized",
        "error",
        f"22% of the linear weights in F16: {DOWN}.weight",
    )


@pytest.mark.parametrize(
    ("excepted", "faults"),
    [
        ({"modules_to_not_convert": ["down_proj"]}, 0),
        ({"modules_to_not_convert": ["up_proj", None, 3]}, 1),
        ({"modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]]}, 0),
        ({"modules_in_block_to_quantize": [["mlp.down_proj"]]}, 1),
        ({"modules_to_not_convert": "down_proj"}, 1),
    ],
)
def test_what_the_configuration_excepts_is_no_fault(
    excepted: dict[str, Any], faults: int, plain: Path, tmp_path: Path
) -> None:
    folder = packed_folder(tmp_path / "model", plain, parse("awq:4bit-g32"))
    leave_out(folder)
    section = dict(open_checkpoint(folder).config["quantization_config"])
    edit_json(folder / "config.json", quantization_config=section | excepted)
    assert len(findings(folder)) == faults


@pytest.mark.parametrize(
    ("file_type", "rules"), [(Q4_K_M, ["not-quantized"]), (F16, []), (10**6, []), ("x", []), (None, [])]
)
def test_a_gguf_is_held_against_its_file_type(file_type: Any, rules: list[str], plain: Path, tmp_path: Path) -> None:
    source = open_checkpoint(plain)
    weights = {name: source.load(name) for name in source.tensors}
    ids = special_ids(derive(source))
    path = write_gguf(
        tmp_path / "model.gguf",
        vocabulary=source.tokenizer.vocabulary,
        ids=ids,
        model=source.model,
        weights=weights,
        more={"general.file_type": file_type},
    )
    assert [item.rule for item in findings(path)] == rules


def export_gguf(source: Path, folder: Path, *recipes: str) -> list[Path]:
    export(prepare(source, [parse(f"gguf:{recipe}") for recipe in recipes]), folder)
    return [path for recipe in recipes for path in folder.rglob(f"*{recipe}*.gguf")]


def test_a_k_quant_of_rows_that_do_not_fit_is_told(plain: Path, tmp_path: Path) -> None:
    k_quant, fitting = export_gguf(plain, tmp_path / "out", "Q4_K_M", "Q8_0")
    (item,) = findings(k_quant)
    assert (item.rule, item.severity, item.field) == ("kquant-shape", "warning", "general.file_type")
    assert item.found == "Q4_K_M, and 100% of the linear weights in Q5_0, Q8_0: rows of 64, 128"
    assert findings(fitting) == []


def test_a_k_quant_of_rows_that_fit_is_healthy(tmp_path: Path) -> None:
    wide = tiny_checkpoint(tmp_path / "wide", family="qwen2", tokenizer="bpe", layers=1, hidden=256, intermediate=256)
    assert findings(*export_gguf(wide, tmp_path / "out", "Q4_K_M")) == []
