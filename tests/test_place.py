"""Where an export may be written, and what it finds and leaves there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.pipeline import prepare
from hermetiq.place import JOURNAL, clear, make_room, no_empty_folders
from hermetiq.plan import Job
from hermetiq.quantize.spec import parse
from tests.fixtures.models import tiny_checkpoint


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    model = tiny_checkpoint(tmp_path_factory.mktemp("place") / "model", family="llama", tokenizer="bpe")
    return prepare(model, [parse("gptq:4bit-g32"), parse("gguf:Q8_0")], rows=2, row_tokens=32)


def files(folder: Path, *names: str) -> list[Path]:
    """Files of three bytes."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"abc")
    return paths


def test_cleared_files_take_empty_folders_with_them(tmp_path: Path) -> None:
    gone = files(tmp_path, "gguf/a.gguf", "gptq-4bit-g32/config.json", "awq-4bit-g32/config.json", "top")
    files(tmp_path, "awq-4bit-g32/mine.txt")
    # The user had deleted one of them already.
    clear([*gone, tmp_path / "gguf/b.gguf"], tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["awq-4bit-g32", "mine.txt"]


def test_clearing_everything_leaves_the_folder_itself(tmp_path: Path) -> None:
    clear(files(tmp_path, "top"), tmp_path)
    assert tmp_path.is_dir()


def test_folders_that_a_failure_made_go_again(tmp_path: Path) -> None:
    outer, inner, full = tmp_path / "out", tmp_path / "out/gguf", tmp_path / "full"

    @no_empty_folders(outer, inner, full)
    def fail() -> None:
        inner.mkdir(parents=True)
        files(full, "kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not outer.exists()
    assert (full / "kept").exists()


def test_what_the_journal_holds_needs_no_room_again(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk ran full, the rest of the room is enough to go on."""
    block = tmp_path / JOURNAL / "block-00000.safetensors"
    block.parent.mkdir()
    block.write_bytes(bytes(1000))
    free = job.plan.disk - 1000
    monkeypatch.setattr("hermetiq.place.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    make_room(tmp_path, job, overwrite=False, resume=True)
    with pytest.raises(HermetiqError, match=f"takes {job.plan.disk} bytes, {free} are free"):
        make_room(tmp_path, job, overwrite=True, resume=False)


def test_a_refusal_takes_nothing_away(job: Job, tmp_path: Path) -> None:
    kept = files(tmp_path, f"{JOURNAL}/identity.json", "gptq-4bit-g32/model.safetensors.partial", "thesis.txt")
    for overwrite, resume in ((False, False), (True, False), (False, True), (True, True)):
        with pytest.raises(HermetiqError, match=r"not empty|thesis\.txt was not made"):
            make_room(tmp_path, job, overwrite=overwrite, resume=resume)
    assert all(path.exists() for path in kept)


def test_remains_of_this_export_go_and_others_stay(job: Job, tmp_path: Path) -> None:
    remains = files(tmp_path, "hermetiq.json.partial", "gguf/model-Q8_0.gguf.partial", "gptq-4bit-g32/x.partial")
    assert make_room(tmp_path, job, overwrite=False, resume=False) == set()
    assert not any(path.exists() for path in remains)
    (other,) = files(tmp_path, "elsewhere/x.partial")
    with pytest.raises(HermetiqError, match=r"not empty"):
        make_room(tmp_path, job, overwrite=False, resume=False)
    assert other.exists()


def test_a_manifest_that_cannot_be_read_protects_its_folder(job: Job, tmp_path: Path) -> None:
    files(tmp_path, "hermetiq.json")
    with pytest.raises(HermetiqError, match=r"not JSON.*choose another OUT, or delete this one"):
        make_room(tmp_path, job, overwrite=True, resume=False)
