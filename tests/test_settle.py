"""Every artifact ends its answers as readily as its source, by gains that are in its files, and tells so truthfully."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hermetiq import settle
from hermetiq.calibration import sums
from hermetiq.calibration.heldout import settling_chats
from hermetiq.calibration.walk import final_hidden, head
from hermetiq.chat.conversations import conversations
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.folder import FolderCheckpoint
from hermetiq.errors import Refusal
from hermetiq.manifest import Artifact, Ending, Manifest
from hermetiq.model import FINAL_NORM
from hermetiq.pipeline import export, prepare
from hermetiq.plan import Job
from hermetiq.quantize.ending import LIMIT
from hermetiq.quantize.spec import parse
from tests.fixtures.models import tiny_checkpoint

SPECS = ("gptq:3bit-g32", "awq:4bit-g32", "exl2:3.0bpw", "gguf:Q4_0", "gguf:F16")


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A tied head and one of its own; random weights, which give every token about the same chance."""
    sizes: Mapping[str, Any] = {"hidden": 128, "intermediate": 128, "dtype": torch.bfloat16}
    model = tiny_checkpoint(tmp_path_factory.mktemp("settle") / "model", family=request.param, tokenizer="bpe", **sizes)
    return prepare(model, [parse(spec) for spec in SPECS], rows=4, row_tokens=48)


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """Chats are settled on as precisely as they are looked at here, whatever this CPU would rather do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_autocasts", lambda *_: False)
        yield


@pytest.fixture(scope="module")
def out(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settle") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "EXPECTED", -100.0)
        export(job, folder)
    return folder


def logprobs(checkpoint: Checkpoint, job: Job) -> torch.Tensor:  # (ends,)
    """What a model makes of each end, read in float32 and from its files alone."""
    asked = conversations(job.source, job.contract, settling_chats())
    hidden = final_hidden(checkpoint.config, checkpoint.load, asked.rows)
    states = torch.stack([hidden[row][place] for row, place in asked.ends])
    return head(checkpoint.config, checkpoint.load)(states).log_softmax(-1)[:, job.contract.terminator_id]


def rounded(folder: Path) -> list[Artifact]:
    """The artifacts of an export that round."""
    *artifacts, plain = Manifest.read(folder).artifacts
    assert [item.spec for item in (*artifacts, plain)] == list(SPECS)
    assert plain.ending is None
    return artifacts


def test_each_artifact_ends_as_its_source_does(job: Job, out: Path) -> None:
    source = logprobs(job.source, job)
    artifacts = rounded(out)
    for item in artifacts:
        assert isinstance(item.ending, Ending)
        found = logprobs(open_checkpoint(out / item.file), job)
        assert item.ending.ends == len(source)
        assert item.ending.source == pytest.approx(float(source.mean()), abs=2e-3)
        assert item.ending.settled == pytest.approx(float(found.mean()), abs=2e-3)
        # Gains may move by a quarter, which is not always enough for a model that never learned to end.
        moved = abs(item.ending.rounded - item.ending.source)
        assert abs(item.ending.settled - item.ending.source) < max(2e-3, 0.2 * moved)
    assert max(abs(item.ending.rounded - item.ending.source) for item in artifacts if item.ending) > 1e-2


def test_nothing_but_the_final_norm_is_changed(job: Job, out: Path, tmp_path: Path) -> None:
    """These models expect no end of theirs by themselves, so without the patch nothing is settled."""
    plain = export(job, tmp_path / "out")
    assert [item.ending for item in plain.artifacts] == [None] * len(SPECS)
    for item in plain.artifacts:
        mine, theirs = (open_checkpoint(folder / item.file) for folder in (out, tmp_path / "out"))
        changed = [name for name in theirs.tensors if not torch.equal(mine.load(name), theirs.load(name))]
        assert changed == ([] if item.spec == "gguf:F16" else [FINAL_NORM])
        before, after = theirs.load(FINAL_NORM).float(), mine.load(FINAL_NORM).float()
        assert ((after - before).abs() <= 1.001 * LIMIT * before.abs()).all()


@pytest.mark.parametrize("imatrix", [False, True])
def test_gguf_files_alone_are_settled_where_they_are_calibrated(
    job: Job, imatrix: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "EXPECTED", -100.0)
    assert isinstance(job.source, FolderCheckpoint)
    again = prepare(job.source.path, [parse("gguf:Q4_0")], imatrix=imatrix, rows=4, row_tokens=48)
    (artifact,) = export(again, tmp_path / "out").artifacts
    assert (artifact.ending is not None) is imatrix
    assert sha256((tmp_path / "out" / artifact.file).read_bytes()).hexdigest() == artifact.sha256


def test_only_ends_that_the_source_expects_count(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chances = logprobs(job.source, job)
    # Between two of them, so that no last bit decides.
    limit = float(chances.sort().values[len(chances) // 2 :][:2].mean())
    monkeypatch.setattr(settle, "EXPECTED", limit)
    ending = export(job, tmp_path / "out").artifacts[0].ending
    assert ending is not None
    expected = chances[chances > limit]
    assert ending.ends == len(expected) > 10
    assert ending.source == pytest.approx(float(expected.mean()), abs=2e-3)


def test_a_file_need_not_fit_into_half_a_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "EXPECTED", -100.0)
    model = tiny_checkpoint(tmp_path / "model", family="llama", tokenizer="bpe")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = 7e4
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (artifact,) = export(
        prepare(model, [parse("gguf:Q8_0")], imatrix=True, rows=4, row_tokens=48), tmp_path / "out"
    ).artifacts
    assert artifact.ending is not None
    with pytest.raises(Refusal, match="f16-overflow"):
        export(prepare(model, [parse("gptq:4bit-g32")], rows=4, row_tokens=48), tmp_path / "folder")
