"""A split GGUF is the same model: llama.cpp loads it by its first part, and says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.manifest import sha256_of
from hermetiq.publish.split import join, parts, split
from hermetiq.runtimes.llama_cpp import LlamaCpp
from tests.oracles.gguf_bytes import parse

LIMIT = 7_500_000


@pytest.fixture(scope="module")
def whole(exported_hermes: Path) -> Path:
    return exported_hermes / "gguf" / "tiny-hermes-Q4_K_M.gguf"


def test_every_part_states_its_place_and_holds_its_tensors_bytes(whole: Path, tmp_path: Path) -> None:
    planned = parts(whole, LIMIT)
    digests = split(whole, planned, tmp_path, LIMIT)
    assert len(planned) > 1
    assert [part.name for part in planned] == [
        f"tiny-hermes-Q4_K_M-{index:05d}-of-{len(planned):05d}.gguf" for index in range(1, len(planned) + 1)
    ]
    content = whole.read_bytes()
    source, found = parse(content), {}
    for index, part in enumerate(planned):
        data = (tmp_path / part.name).read_bytes()
        header = parse(data)
        assert len(data) == part.bytes <= LIMIT
        own = {"split.no": index, "split.count": len(planned), "split.tensors.count": len(source.tensors)}
        assert header.metadata == ({**source.metadata, **own} if index == 0 else own)
        for name, tensor in header.tensors.items():
            size = 64
            assert (
                data[header.data + tensor.offset :][:size]
                == content[source.data + source.tensors[name].offset :][:size]
            )
            assert (tensor.dimensions, tensor.type) == (source.tensors[name].dimensions, source.tensors[name].type)
            found[name] = index
    assert list(found) == list(source.tensors)
    assert set(digests) == {tmp_path / part.name for part in planned}


def test_joined_again_they_are_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    planned = parts(whole, LIMIT)
    split(whole, planned, tmp_path, LIMIT)
    assert join([tmp_path / part.name for part in planned], tmp_path / "joined.gguf") == sha256_of(whole)
    assert sha256_of(tmp_path / "joined.gguf") == sha256_of(whole)


def test_parts_that_belong_to_different_files_are_not_joined(whole: Path, tmp_path: Path) -> None:
    planned = parts(whole, LIMIT)
    first, *_ = split(whole, planned, tmp_path, LIMIT)
    with pytest.raises(HermetiqError, match="another part holds"):
        join([first, first], tmp_path / "joined.gguf")
    assert not (tmp_path / "joined.gguf").exists()


def test_llama_cpp_loads_the_first_part_and_computes_the_same(whole: Path, tmp_path: Path) -> None:
    planned = parts(whole, LIMIT)
    split(whole, planned, tmp_path, LIMIT)
    ids = [1, 32001, 2188, 13]
    with LlamaCpp(whole) as source, LlamaCpp(tmp_path / planned[0].name) as halves:
        assert halves.vocabulary == source.vocabulary
        assert halves.end_of_generation == source.end_of_generation
        assert (halves.next_logprobs(ids) == source.next_logprobs(ids)).all()


def test_a_file_below_the_limit_stays_whole(whole: Path) -> None:
    assert parts(whole, whole.stat().st_size) == ()


def test_a_limit_below_a_tensor_or_the_metadata_is_refused(whole: Path) -> None:
    with pytest.raises(HermetiqError, match="no part of it fits"):
        parts(whole, 200_000)


def test_a_file_that_is_a_part_already_is_not_split_again(whole: Path, tmp_path: Path) -> None:
    planned = parts(whole, LIMIT)
    split(whole, planned, tmp_path, LIMIT)
    with pytest.raises(HermetiqError, match=r"it states split\.no"):
        parts(tmp_path / planned[0].name, 1000)
