"""Folders of safetensors: read by the library, counted by hand, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hermetiq.errors import HermetiqError
from hermetiq.formats.shards import INDEX, PlannedTensor, write_shards

SINGLE = "model.safetensors"

TENSORS: Mapping[str, Tensor] = {
    "b.qweight": torch.arange(-6, 6, dtype=torch.int32).reshape(3, 4),
    "a.scales": torch.linspace(-1, 1, 10).to(torch.float16).reshape(5, 2),
    "c.weight": torch.linspace(-3, 3, 7).to(torch.bfloat16),
    "d.weight": torch.linspace(0, 1, 3),
    "\u00e9.groups": torch.tensor([4, 0], dtype=torch.int16),
}


def planned(tensors: Mapping[str, Tensor] = TENSORS) -> list[PlannedTensor]:
    return [PlannedTensor(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file_holds_all_and_says_so_in_its_header(tmp_path: Path) -> None:
    digests = write_shards(tmp_path / "new", planned(), TENSORS.__getitem__)
    path = tmp_path / "new" / SINGLE
    content = path.read_bytes()
    assert digests == {path: hashlib.sha256(content).hexdigest()}
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == list(TENSORS)
    assert header["b.qweight"] == {"dtype": "I32", "shape": [3, 4], "data_offsets": [0, 48]}
    assert header["a.scales"] == {"dtype": "F16", "shape": [5, 2], "data_offsets": [48, 68]}
    assert content[8 + length : 12 + length] == (-6).to_bytes(4, "little", signed=True)
    assert len(content) == 8 + length + 48 + 20 + 14 + 12 + 4


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    write_shards(tmp_path, planned(), TENSORS.__getitem__)
    found = load_file(tmp_path / SINGLE)
    assert found.keys() == TENSORS.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in TENSORS.items()
    )
    with safe_open(tmp_path / SINGLE, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_shards_and_their_index(tmp_path: Path) -> None:
    digests = write_shards(tmp_path, planned(), TENSORS.__getitem__, max_bytes=70)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(tmp_path) == [*files, INDEX]
    assert digests == {
        tmp_path / file: hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() for file in names(tmp_path)
    }
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 98}
    expected = dict(zip(TENSORS, [files[0]] * 2 + [files[1]] * 3, strict=True))
    assert index["weight_map"] == expected
    for name, file in expected.items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])


def test_files_may_have_another_name_and_their_index_has_not(tmp_path: Path) -> None:
    write_shards(tmp_path, planned(), TENSORS.__getitem__, stem="output", max_bytes=70)
    files = ["output-00001-of-00002.safetensors", "output-00002-of-00002.safetensors"]
    assert names(tmp_path) == [INDEX, *files]
    assert sorted(set(json.loads((tmp_path / INDEX).read_text())["weight_map"].values())) == files
    write_shards(tmp_path / "one", planned(), TENSORS.__getitem__, stem="output")
    assert names(tmp_path / "one") == ["output.safetensors"]


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    write_shards(tmp_path, planned(), TENSORS.__getitem__, max_bytes=1)
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(set(index["weight_map"].values())) == len(TENSORS)


def test_the_same_tensors_make_the_same_bytes_wherever_they_lie_in_memory(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "1", planned(), TENSORS.__getitem__)
    second = write_shards(tmp_path / "2", planned(), lambda name: TENSORS[name].repeat_interleave(2, -1)[..., ::2])
    assert list(first.values()) == list(second.values())


def test_each_tensor_is_asked_for_once_in_order_and_told_of(tmp_path: Path) -> None:
    asked: list[str] = []
    told: list[tuple[str, int]] = []
    write_shards(
        tmp_path,
        planned(),
        lambda name: (asked.append(name), TENSORS[name])[1],
        max_bytes=30,
        on_tensor=lambda *step: told.append(step),
    )
    assert asked == [name for name, _ in told] == list(TENSORS)
    assert [done for _, done in told] == [48, 68, 82, 94, 98]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(8, dtype=torch.bfloat16), r"c\.weight: torch.bfloat16 of shape \(8,\), planned .*\(7,\)"),
        (torch.zeros(7, dtype=torch.float16), r"c\.weight: torch.float16 .* planned torch.bfloat16"),
    ],
)
def test_a_tensor_that_is_not_as_planned_is_named_and_nothing_stays(
    tensor: Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(HermetiqError, match=message):
        write_shards(tmp_path, planned(), lambda name: tensor if name == "c.weight" else TENSORS[name], max_bytes=50)
    assert not names(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("disk on fire"), KeyboardInterrupt()])
def test_whatever_interrupts_leaves_old_files_as_they_were(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_text("of yesterday")

    def load(name: str) -> Tensor:
        if name == "d.weight":
            raise error
        return TENSORS[name]

    with pytest.raises(type(error)):
        write_shards(tmp_path, planned(), load, max_bytes=50)
    assert names(tmp_path) == [SINGLE]
    assert (tmp_path / SINGLE).read_text() == "of yesterday"


@pytest.mark.parametrize("failing", [1, 3])
def test_a_disk_that_fills_is_one_clear_error_and_leaves_nothing(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def full(_: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HermetiqError, match="cannot write: No space left on device"):
        write_shards(tmp_path, planned(), TENSORS.__getitem__, max_bytes=50)
    assert not names(tmp_path)


def test_a_plan_of_nothing_or_of_one_name_twice_is_a_mistake(tmp_path: Path) -> None:
    for plan in ([], planned()[:1] * 2):
        with pytest.raises(ValueError, match="each tensor is planned once"):
            write_shards(tmp_path, plan, TENSORS.__getitem__)
