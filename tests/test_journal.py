"""What an interrupted export left is continued where it is whole, and never believed where it is not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hermetiq.errors import HermetiqError
from hermetiq.journal import Journal
from tests.fixtures.forks import Forks, content
from tests.fixtures.models import tiny_checkpoint

IDENTITY = {"source": "abc", "rows": "128", "specs": "gptq:4bit-g64"}
TRACKS = ("gptq:4bit-g64", "awq:4bit-g64")


def tensors(index: int) -> dict[str, dict[str, Tensor]]:
    """One block of two tracks: packed codes, half-precision scales, a view, one tensor under two names, nothing."""
    generator = torch.Generator().manual_seed(index)
    codes = torch.randint(-(2**31), 2**31 - 1, (8, 16), generator=generator, dtype=torch.int32)
    scales = torch.randn(4, 16, generator=generator)
    prefix = f"model.layers.{index}."
    return {
        TRACKS[0]: {f"{prefix}qweight": codes, f"{prefix}scales": scales.half().T, f"{prefix}same": codes},
        TRACKS[1]: {f"{prefix}qweight": codes[2:4], f"{prefix}bf16": scales.bfloat16(), f"{prefix}none": codes[:0]},
    }


def begun(folder: Path, blocks: int = 3) -> Journal:
    journal = Journal.open(folder, IDENTITY, resume=False)
    for index in range(blocks):
        journal.write(index, tensors(index), {"damping": {str(index): 0.01}, "steps": (1, 2)})
    return journal


def continued(folder: Path) -> Journal:
    return Journal.open(folder, IDENTITY, resume=True)


def test_what_was_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for journal in (begun(tmp_path / "work"), continued(tmp_path / "work")):
        assert (journal.blocks, journal.distrusted) == (3, ())
        for index in range(3):
            assert journal.notes(index) == {"damping": {str(index): 0.01}, "steps": [1, 2]}
            for track, named in tensors(index).items():
                read = journal.read(index, track)
                assert list(read) == list(named)
                for name, tensor in named.items():
                    for mine in (read[name], journal.load(track, name)):
                        assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape)
                        assert torch.equal(mine, tensor)
        assert journal.names(TRACKS[0]) == [name for index in range(3) for name in tensors(index)[TRACKS[0]]]
        with pytest.raises(KeyError, match="layers"):
            journal.load(TRACKS[0], "model.layers.9.qweight")


def test_an_unfinished_export_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    begun(tmp_path / "work")
    with pytest.raises(HermetiqError, match=r"unfinished export.*--resume.*--overwrite"):
        Journal.open(tmp_path / "work", IDENTITY, resume=False)
    assert continued(tmp_path / "work").blocks == 3


def test_resuming_where_nothing_was_begun_begins(tmp_path: Path) -> None:
    assert continued(tmp_path / "out" / "work").blocks == 0


def test_another_export_is_refused_with_the_difference(tmp_path: Path) -> None:
    begun(tmp_path / "work")
    other = {"source": "abc", "rows": "64", "seed": "1"}
    with pytest.raises(HermetiqError) as refused:
        Journal.open(tmp_path / "work", other, resume=True)
    difference = "rows: 128 -> 64; seed: (none) -> 1; specs: gptq:4bit-g64 -> (none)"
    assert refused.value.what.endswith(f": {difference}")
    assert continued(tmp_path / "work").blocks == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7] + bytes(7))


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("0.01", "0.02"))


def alien(path: Path) -> None:
    """A whole block, all digests right, of an export of something else."""
    journal = Journal.open(path.parent.parent / "other", {"source": "xyz"}, resume=False)
    for index in range(2):
        journal.write(index, tensors(index), {})
    path.write_bytes((path.parent.parent / "other" / path.name).read_bytes())


@pytest.mark.parametrize(
    ("file", "harm", "reason"),
    [
        ("block-00001.safetensors", cut, "not those that were recorded"),
        ("block-00001.safetensors", flip, "not those that were recorded"),
        ("block-00001.safetensors", Path.unlink, "No such file"),
        ("block-00001.json", cut, ""),
        ("block-00001.json", edit, "record was changed"),
        ("block-00001.json", alien, "another export"),
        ("block-00001.json", lambda path: path.write_text("[]"), ""),
        ("block-00001.json", lambda path: path.write_bytes(b"\xff\x00"), ""),
    ],
)
def test_a_block_that_is_not_whole_is_made_again(
    tmp_path: Path, file: str, harm: Callable[[Path], object], reason: str
) -> None:
    begun(tmp_path / "work")
    harm(tmp_path / "work" / file)
    journal = continued(tmp_path / "work")
    assert journal.blocks == 1
    assert [line.partition(":")[0] for line in journal.distrusted] == ["block-00001", "block-00002"]
    assert reason in journal.distrusted[0]
    assert "follows" in journal.distrusted[1]
    for index in (1, 2):
        journal.write(index, tensors(index), {})
    assert (continued(tmp_path / "work").blocks, continued(tmp_path / "work").distrusted) == (3, ())


def test_what_a_kill_leaves_in_the_middle_of_a_block_is_no_block(tmp_path: Path) -> None:
    begun(tmp_path / "work", blocks=2)
    (tmp_path / "work" / "block-00001.json").unlink()
    (tmp_path / "work" / "block-00002.safetensors.partial").write_bytes(b"half")
    (tmp_path / "work" / ".tmpzJSmLt").write_bytes(b"half")
    journal = continued(tmp_path / "work")
    assert (journal.blocks, journal.distrusted) == (1, ())
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "block-00000.json",
        "block-00000.safetensors",
        "identity.json",
    ]


def test_an_identity_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    begun(tmp_path / "work")
    cut(tmp_path / "work" / "identity.json")
    with pytest.raises(HermetiqError, match=r"identity\.json.*cannot be read.*--overwrite"):
        continued(tmp_path / "work")


def test_a_link_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "elsewhere")
    (tmp_path / "work").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HermetiqError, match="link"):
        continued(tmp_path / "work")


def test_blocks_are_written_in_order(tmp_path: Path) -> None:
    journal = begun(tmp_path / "work", blocks=1)
    for index in (0, 2):
        with pytest.raises(ValueError, match="1 comes next"):
            journal.write(index, tensors(index), {})


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    begun(tmp_path / "out" / "work").remove()
    assert list((tmp_path / "out").iterdir()) == []


KILLS = 40
"""Half as many fell, once, by chance into too few blocks."""


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """`kill -9`, forty times and more, at random moments of an export that calibrates sequentially."""
    model = tiny_checkpoint(tmp_path / "model", tokenizer="bpe", layers=6)
    draw = random.Random(11)
    killed_with = list[int]()
    with Forks("tests.fixtures.resumable_worker", model) as exports:
        exports.run(tmp_path / "warm")
        seconds = time.perf_counter()
        exports.run(tmp_path / "whole")
        seconds = time.perf_counter() - seconds
        while len(killed_with) < KILLS:
            work = tmp_path / f"work-{len(killed_with)}"
            while not exports.run(work, seconds=draw.uniform(0, seconds)):
                killed_with.append(len(list(work.glob("block-*.json"))))
            assert content(work) == content(tmp_path / "whole")
    # Early, late and between: not all in one place.
    assert len(set(killed_with)) > 4
