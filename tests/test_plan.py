"""What a plan says before any weight is read; that it comes true is tested in `test_tracks` and `test_pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hermetiq.pipeline import prepare
from hermetiq.plan import RESERVE, Plan
from hermetiq.quantize.spec import parse
from tests.fixtures.models import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("plan") / "model", family="llama", tokenizer="bpe")


def planned(model: Path, *specs: str, **options: Any) -> Plan:
    return prepare(model, [parse(spec) for spec in specs], **{"rows": 2, "row_tokens": 32, **options}).plan


def test_files_keep_the_order_in_which_they_were_asked_for(model: Path) -> None:
    plan = planned(model, "gguf:Q8_0", "awq:4bit-g64", "gguf:F16", "gptq:3bit-g32", "gguf:Q8_0")
    assert [file.spec for file in plan.files] == ["gguf:Q8_0", "awq:4bit-g64", "gguf:F16", "gptq:3bit-g32"]


def test_folders_take_their_room_twice_while_the_journal_is_there(model: Path) -> None:
    file, folder = planned(model, "gguf:Q8_0", "gptq:4bit-g32").files
    assert planned(model, "gguf:Q8_0", "gptq:4bit-g32").disk == file.bytes + 2 * folder.bytes
    assert planned(model, "gguf:Q8_0").disk == file.bytes


def test_memory_counts_the_states_of_all_rows_once(model: Path) -> None:
    few, many = (planned(model, "gptq:4bit-g32", rows=rows) for rows in (2, 40))
    assert few.calibration is not None
    assert many.calibration is not None
    assert many.memory - few.memory == 4 * 64 * (many.calibration["tokens"] - few.calibration["tokens"])
    assert few.memory > planned(model, "gguf:Q8_0").memory > RESERVE


def test_memory_does_not_grow_with_depth(model: Path, tmp_path: Path) -> None:
    deep = tiny_checkpoint(tmp_path / "model", family="llama", tokenizer="bpe", layers=5)
    assert planned(deep, "gptq:4bit-g32").memory == planned(model, "gptq:4bit-g32").memory


def test_what_gpus_cannot_split_is_in_the_plan(model: Path) -> None:
    (file,) = planned(model, "gptq:4bit-g32").files
    assert file.unsplit[1] == ()
    assert "o_proj" in " ".join(file.unsplit[8])
