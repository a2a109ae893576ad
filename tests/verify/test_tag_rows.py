"""The rows of the tags: rounding passes in every format, and a row that was damaged is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from hermetiq.verify.judge import Findings
from hermetiq.verify.tag_rows import TagRows
from tests.fixtures.gguf_edits import stored_tensors
from tests.fixtures.models import tiny_checkpoint
from tests.fixtures.packed import packed_folder

IM_END, IM_START = 32000, 32001
FOLDERS = {"gptq:4bit-g64": "F16", "awq:4bit-g64": "F16", "exl2:4.65bpw": "EXL2"}
"""Specs, and the type of the head."""
RECIPES = {"F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q5_0": "Q6_K", "Q4_K_M": "Q6_K", "Q2_K": "Q6_K"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "m", hidden=256)


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    export(prepare(source, [parse(f"gguf:{recipe}") for recipe in RECIPES]), folder, threads=1)
    return folder / "gguf"


@pytest.fixture(scope="module")
def gptq(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_folder(tmp_path_factory.mktemp("packed") / "m", source, parse("gptq:4bit-g64"))


def compared(source: Path, artifact: Path, *, imatrix: bool = False) -> Findings:
    checkpoint = open_checkpoint(source)
    return TagRows(checkpoint, derive(checkpoint).tags).compare(open_checkpoint(artifact), imatrix=imatrix)


@pytest.mark.parametrize("recipe", RECIPES)
def test_rounding_passes_in_every_gguf_type(source: Path, exported: Path, recipe: str) -> None:
    found = compared(source, exported / f"m-{recipe}.gguf")
    assert found.checks[0].passed, found.checks
    assert {row.text for row in found.tag_rows} >= {"<|im_end|>", "<|im_start|>"}
    assert {row.type for row in found.tag_rows if row.matrix == "head"} == {RECIPES[recipe]}
    assert all(row.cosine is not None and row.cosine > 0.9 for row in found.tag_rows)
    if recipe in ("F32", "BF16"):
        assert {row.error for row in found.tag_rows} == {0}


@pytest.mark.parametrize("spec", FOLDERS)
def test_rounding_passes_in_every_folder(source: Path, gptq: Path, tmp_path: Path, spec: str) -> None:
    folder = gptq if spec.startswith("gptq") else packed_folder(tmp_path / "m", source, parse(spec))
    found = compared(source, folder)
    assert found.checks[0].passed, found.checks
    assert {(row.matrix, row.type) for row in found.tag_rows} == {("embedding", "F16"), ("head", FOLDERS[spec])}
    # Bfloat16 fits into float16 but for values below its range.
    assert all(row.error is not None and row.error < 1e-4 for row in found.tag_rows if row.type == "F16")


def swapped(rows: Tensor) -> None:
    rows[[IM_END, IM_START]] = rows[[IM_START, IM_END]]


def zeroed(rows: Tensor) -> None:
    rows[IM_END] = 0


def nudged(rows: Tensor) -> None:
    """By a hundredth of its largest weight, ten times what rounding to 16 bits does."""
    rows[IM_END, 3] += 0.01 * rows[IM_END].abs().max()


DAMAGES: dict[Callable[[Tensor], None], set[int]] = {swapped: {IM_END, IM_START}, zeroed: {IM_END}, nudged: {IM_END}}


@pytest.mark.parametrize("matrix", [EMBEDDING, HEAD])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_row_is_named(
    source: Path, gptq: Path, tmp_path: Path, matrix: str, damage: Callable[[Tensor], None]
) -> None:
    folder = shutil.copytree(gptq, tmp_path / "m")
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    damage(weights[matrix])
    save_file(weights, path, metadata={"format": "pt"})
    found = compared(source, folder)
    (check,) = found.checks
    wrong = [row for row in found.tag_rows if not row.sound]
    assert (check.name, check.passed, check.value, check.limit) == ("tag-rows", False, len(DAMAGES[damage]), 0)
    assert {row.id for row in wrong} == DAMAGES[damage]
    assert {row.matrix for row in wrong} == {"head" if matrix == HEAD else "embedding"}
    assert f"<|im_end|> = {IM_END} in the {wrong[0].matrix}, F16: off by " in check.reason
    if damage is zeroed:
        assert (wrong[0].cosine, wrong[0].error) == (None, 1)


@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "weighed"])
def test_swapped_rows_show_in_coarse_types_too(source: Path, exported: Path, tmp_path: Path, imatrix: bool) -> None:
    path = Path(shutil.copyfile(exported / "m-Q2_K.gguf", tmp_path / "m.gguf"))
    with stored_tensors(path) as stored:
        rows = stored["token_embd.weight"]
        rows[[IM_END, IM_START]] = rows[[IM_START, IM_END]]
    assert not compared(source, path, imatrix=imatrix).checks[0].passed


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "tied", hidden=256, tied=True)
    export(prepare(source, [parse("gguf:Q4_K_M")]), tmp_path / "out", threads=1)
    found = compared(source, tmp_path / "out/gguf/tied-Q4_K_M.gguf")
    assert found.checks[0].passed
    assert {row.type for row in found.tag_rows} == {"Q6_K"}
    assert {row.matrix for row in found.tag_rows} == {"embedding", "head"}
