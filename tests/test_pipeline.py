"""From a checkpoint to artifacts: plans that hold, one read, and nothing unfinished under its name."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from hermetiq.errors import HermetiqError, Refusal
from hermetiq.manifest import STAGES, Manifest, sha256_of
from hermetiq.model import TokenKind
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from tests.fixtures.models import copy_of, tiny_checkpoint

SPECS = [parse("gguf:Q8_0"), parse("gguf:Q4_K_M")]


def test_an_export_is_what_its_plan_said(hermes: Path, tmp_path: Path) -> None:
    job = prepare(hermes, SPECS)
    manifest = export(job, tmp_path / "out")
    assert [artifact.spec for artifact in manifest.artifacts] == ["gguf:Q8_0", "gguf:Q4_K_M"]
    for planned, artifact in zip(job.plan.files, manifest.artifacts, strict=True):
        path = tmp_path / "out" / artifact.file
        assert path.stat().st_size == planned.bytes == artifact.bytes
        assert sha256_of(path) == artifact.sha256
        tensors = gguf.GGUFReader(path).tensors
        assert {tensor.name: tensor.tensor_type.name for tensor in tensors} == artifact.tensor_types
        assert Counter(tensor.tensor_type.name for tensor in tensors) == planned.types
        data, weights = sum(tensor.n_bytes for tensor in tensors), sum(int(tensor.n_elements) for tensor in tensors)
        assert planned.bpw == pytest.approx(8 * data / weights)
    assert Manifest.read(tmp_path / "out") == manifest


def test_rows_of_64_show_their_fallbacks_in_the_plan_and_the_manifest(hermes: Path, tmp_path: Path) -> None:
    job = prepare(hermes, [parse("gguf:Q4_K_M")])
    (planned,) = job.plan.files
    assert planned.fallback_share > 0.9
    assert planned.bpw > planned.nominal_bpw
    (artifact,) = export(job, tmp_path / "out").artifacts
    assert artifact.fallbacks["blk.0.attn_q.weight"] == "Q5_0"


def test_every_tensor_is_read_once_for_all_types(hermes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(hermes, [*SPECS, parse("gguf:F16")])
    read: Counter[str] = Counter()
    load = job.source.load
    monkeypatch.setattr(job.source, "load", lambda name: (read.update([name]), load(name))[1])
    # The fingerprint samples a few pages of each tensor; what is counted here is the reading of weights.
    monkeypatch.setattr(job.source, "fingerprint", lambda: "0" * 64)
    export(job, tmp_path / "out")
    assert read == Counter(list(job.source.tensors))


def test_the_bytes_depend_on_neither_threads_nor_company(hermes: Path, tmp_path: Path) -> None:
    alone = export(prepare(hermes, SPECS[1:]), tmp_path / "alone", threads=1)
    together = export(prepare(hermes, SPECS), tmp_path / "together", threads=3)
    assert alone.artifacts[0] == together.artifacts[1]
    again = export(prepare(hermes, SPECS), tmp_path / "again", threads=2)
    assert (tmp_path / "together/hermetiq.json").read_bytes() == (tmp_path / "again/hermetiq.json").read_bytes()
    assert again == together


def test_a_shard_layout_makes_no_difference(tmp_path: Path) -> None:
    digests = set()
    for shards in (1, 3):
        source = tiny_checkpoint(tmp_path / str(shards) / "model", shards=shards)
        (artifact,) = export(prepare(source, SPECS[:1]), tmp_path / str(shards) / "out").artifacts
        digests.add(artifact.sha256)
    assert len(digests) == 1


def test_errors_refuse_unless_ignored_and_then_stay_on_record(hermes: Path, tmp_path: Path) -> None:
    broken = copy_of(hermes, tmp_path / "broken")
    path = broken / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    with pytest.raises(Refusal, match="eos-mismatch") as refusal:
        prepare(broken, SPECS)
    assert {finding.rule for finding in refusal.value.findings} == {"eos-mismatch"}
    job = prepare(broken, SPECS[:1], ignore=["eos-mismatch"])
    manifest = export(job, tmp_path / "out")
    assert [(finding.rule, finding.severity) for finding in manifest.source.findings] == [("eos-mismatch", "warning")]
    fields = gguf.GGUFReader(tmp_path / "out" / manifest.artifacts[0].file).fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 32000
    with pytest.raises(HermetiqError, match="eos-mismatch"):
        prepare(broken, SPECS, ignore=["eos-missmatch"])


def test_tags_are_control_tokens_however_the_source_types_them(hermes: Path, tmp_path: Path) -> None:
    plain = copy_of(hermes, tmp_path / "plain")
    document = json.loads((plain / "tokenizer.json").read_text())
    (tag,) = (token for token in document["added_tokens"] if token["content"] == "<|im_start|>")
    tag["special"] = False
    (plain / "tokenizer.json").write_text(json.dumps(document))
    job = prepare(plain, SPECS[:1])
    assert job.source.tokenizer.vocabulary.tokens[32001].kind is TokenKind.USER_DEFINED
    (artifact,) = export(job, tmp_path / "out").artifacts
    types = gguf.GGUFReader(tmp_path / "out" / artifact.file).fields["tokenizer.ggml.token_type"].contents()
    assert types[32000:32002] == [TokenKind.CONTROL, TokenKind.CONTROL]


def test_nan_refuses_by_name_and_leaves_nothing(hermes: Path, tmp_path: Path) -> None:
    broken = copy_of(hermes, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][3, 5] = torch.nan
    (broken / "model.safetensors").unlink()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match=f"{name}.*NaN"):
        export(prepare(broken, SPECS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(hermes: Path, tmp_path: Path) -> None:
    job = prepare(hermes, SPECS[:1])
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(HermetiqError, match=r"not empty|thesis\.txt was not made"):
            export(job, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwrite_replaces_an_earlier_export_and_nothing_else(hermes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(prepare(hermes, SPECS), out)
    job = prepare(hermes, [parse("gguf:F16")])
    with pytest.raises(HermetiqError, match="not empty"):
        export(job, out)
    (out / "gguf" / "mine.txt").write_text("x")
    with pytest.raises(HermetiqError, match=r"mine\.txt was not made by hermetiq"):
        export(job, out, overwrite=True)
    (out / "gguf" / "mine.txt").unlink()
    export(job, out, overwrite=True)
    assert sorted(path.name for path in out.rglob("*.*")) == ["hermes-F16.gguf", STAGES, "hermetiq.json"]


def test_the_source_is_never_overwritten(hermes: Path, tmp_path: Path) -> None:
    export(prepare(hermes, [parse("gguf:F16")]), tmp_path)
    artifact = tmp_path / "gguf" / "hermes-F16.gguf"
    with pytest.raises(HermetiqError, match="the source lies in it"):
        export(prepare(artifact, SPECS[:1]), tmp_path, overwrite=True)
    assert artifact.is_file()


def test_nothing_is_written_through_a_link_in_the_folder(hermes: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "gguf").symlink_to(elsewhere)
    for overwrite in (False, True):
        with pytest.raises(HermetiqError, match=r"not empty|gguf was not made"):
            export(prepare(hermes, SPECS[:1]), out, overwrite=overwrite)
    assert [*elsewhere.iterdir()] == []


@pytest.mark.parametrize("place", ["file", "file/below", "nowhere"])
def test_a_place_that_can_be_no_folder(hermes: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(HermetiqError, match="not a folder"):
        export(prepare(hermes, SPECS[:1]), tmp_path / place)


@pytest.mark.parametrize("name", ["", "..", "../up", ".hidden", "-x", "a/b", "a\\b", "a\nb", "\u202ea", "x" * 201])
def test_names_that_can_name_no_file(hermes: Path, name: str) -> None:
    with pytest.raises(HermetiqError, match="cannot name a file"):
        prepare(hermes, SPECS[:1], name=name)


def test_a_full_disk_is_told_before_work_begins(hermes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermetiq.place.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(HermetiqError, match="1 are free"):
        export(prepare(hermes, SPECS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def slow_to_write(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that writing takes a second or two, and most of an export can be interrupted."""
    return tiny_checkpoint(tmp_path_factory.mktemp("slow") / "model", hidden=256, intermediate=512, layers=4)


def _begin(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """An export of its own process, up to the moment its first partial file is there."""
    command = [sys.executable, "-m", "hermetiq", "export", str(source), str(out), "--threads", "1"]
    for recipe in ("Q4_K_M", "Q2_K", "Q5_K_M"):
        command += ["--to", f"gguf:{recipe}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.rglob("*.partial")):
        assert process.poll() is None, "the export ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_kill_minus_nine_leaves_no_final_name(slow_to_write: Path, tmp_path: Path) -> None:
    chance = random.Random(7)
    out = tmp_path / "out"
    for _ in range(5):
        process = _begin(slow_to_write, out)
        time.sleep(chance.uniform(0.0, 1.0))
        process.kill()
        process.wait()
        left = [path.name for path in out.rglob("*") if path.is_file()]
        assert left
        assert all(name.endswith(".partial") for name in left)
    # The next export clears the remains and succeeds in the same folder.
    manifest = export(prepare(slow_to_write, SPECS[:1]), out)
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        STAGES,
        "hermetiq.json",
        "model-Q8_0.gguf",
    ]
    assert sha256_of(out / manifest.artifacts[0].file) == manifest.artifacts[0].sha256


def test_ctrl_c_leaves_nothing_at_all(slow_to_write: Path, tmp_path: Path) -> None:
    process = _begin(slow_to_write, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
