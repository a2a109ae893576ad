"""`hermetiq.json`: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hermetiq import typed_json
from hermetiq.chat.contract import ChatContract, EosSource, Tag
from hermetiq.checkpoint.base import Provenance
from hermetiq.errors import Finding, HermetiqError
from hermetiq.manifest import (
    FILE,
    Artifact,
    Calibration,
    Manifest,
    Solving,
    Source,
    StoredFile,
    combined_sha256,
    sha256_of,
)
from hermetiq.verification import Check, TagRow, TurnEnd, Verification

CONTRACT = ChatContract(
    template="{{ '日本' }}",
    terminator="<|im_end|>",
    terminator_id=32000,
    stop_ids=(2, 32000),
    tags=(Tag("<|im_end|>", 32000),),
    bos_token_id=1,
    add_bos=True,
    pad_token_id=None,
    unk_token_id=0,
    tokens=32002,
    rows=32064,
    eos_sources=(EosSource("config.json", "eos_token_id", "32000", (32000,)),),
    prompt_format="chatml",
    stop_strings=("### Input:",),
)
ARTIFACT = Artifact(
    spec="gguf:Q8_0",
    file="gguf/m-Q8_0.gguf",
    sha256="ab" * 32,
    files={"gguf/m-Q8_0.gguf": "ab" * 32},
    bytes=100,
    bpw=8.5,
    nominal_bpw=8.5,
    fallbacks={"x": "Q5_0"},
    tensor_types={"x": "Q5_0", "y": "F32"},
)
FILES = {"gptq/m/config.json": "12" * 32, "gptq/m/a/model.safetensors": "34" * 32}
FOLDER = Artifact(
    spec="gptq:4bit-g64",
    file="gptq/m",
    sha256=combined_sha256(FILES),
    files=FILES,
    bytes=50,
    bpw=4.25,
    nominal_bpw=4.25,
    solving=Solving({"damping": 1}, ("model.layers.0.mlp.down_proj: damping 0.05",)),
    widths={"model.layers.0.mlp.down_proj": "0.1:4b/0.9:3b-g64"},
    expected_kl=0.02,
)
CALIBRATION = Calibration("built-in", 7, "ef" * 32, 128, 120, 8, 61440, 0.25, sequential=True)
FINDING = Finding("vocab-padding", "info", "config.json", "vocab_size", "1", "2", "because", "nothing")
VERIFICATION = Verification(
    "ab" * 32,
    (Check("kl", True, 0.1, 0.2), Check("bos", False, "[1]", "[]", "no")),
    {"kl": 0.1},
    turn_ends=(TurnEnd(3, 17, "derrière l'église.", -0.1, 1, None, 32002),),
    tag_rows=(TagRow("<|im_end|>", 32000, "head", "Q6_K", 0.9999, 0.015, 0.03),),
)
MANIFEST = Manifest(
    source=Source("m", "cd" * 32, Provenance("m", base_models=("org/base",)), CONTRACT, (FINDING,)),
    artifacts=(ARTIFACT, FOLDER),
    calibration=CALIBRATION,
    measurement=StoredFile("measurement.json", "56" * 32),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    manifest = MANIFEST.with_verification(ARTIFACT.file, VERIFICATION)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert "日本" in text
    manifest.write(tmp_path)
    assert (tmp_path / FILE).read_text(encoding="utf-8") == text
    assert not MANIFEST.verification


def test_the_measurement_is_a_file_of_the_export(tmp_path: Path) -> None:
    expected = {**ARTIFACT.files, **FILES, "measurement.json": "56" * 32}
    assert MANIFEST.files == expected
    assert MANIFEST.paths(tmp_path) == {name: tmp_path / name for name in expected}
    assert replace(MANIFEST, measurement=None).files.keys() == expected.keys() - {"measurement.json"}


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    broken = replace(VERIFICATION, figures={"kl": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        MANIFEST.with_verification(ARTIFACT.file, broken).write(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def renamed_file(document: dict[str, Any], name: str) -> None:
    document["artifacts"][0].update(file=name, files={name: ARTIFACT.sha256})


def renamed_part(document: dict[str, Any], name: str) -> None:
    """The first part of the folder artifact under another name, with the digest that fits."""
    artifact = document["artifacts"][1]
    artifact["files"][name] = artifact["files"].pop("gptq/m/config.json")
    artifact["sha256"] = combined_sha256(artifact["files"])


Change = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, tuple[Change, str]] = {
    "another version": (lambda it: it.update(version=2), "version 5"),
    "no version": (lambda it: it.pop("version"), "version 5"),
    "a key missing": (lambda it: it.pop("source"), "keys missing or unknown: source"),
    "a key too many": (lambda it: it["source"].update(extra=1), "source: keys missing or unknown: extra"),
    "a text for a number": (lambda it: it["artifacts"][0].update(bytes="100"), r"artifacts\[0\]\.bytes: found '100'"),
    "a truth for a number": (lambda it: it["artifacts"][0].update(bpw=True), r"artifacts\[0\]\.bpw: found 'True'"),
    "a number for a truth": (
        lambda it: it["source"]["contract"].update(add_bos=1),
        "add_bos: found '1', expected bool",
    ),
    "a fraction for an id": (lambda it: it["source"]["contract"].update(rows=1.5), r"contract\.rows"),
    "null for a list": (lambda it: it.update(artifacts=None), "artifacts: found 'None'"),
    "a list for an object": (lambda it: it.update(source=[]), "expected Source"),
    "an unknown severity": (lambda it: it["source"]["findings"][0].update(severity="fatal"), "severity: found 'fatal'"),
    "neither of two types": (lambda it: it["source"]["provenance"].update(license=3), "expected str or NoneType"),
    "an absolute path": (lambda it: renamed_file(it, "/etc/passwd"), "outside the folder"),
    "a way up": (lambda it: renamed_file(it, "gguf/../../up.gguf"), "outside the folder"),
    "a backslash": (lambda it: renamed_file(it, "gguf\\up.gguf"), "outside the folder"),
    "a part with a way up": (
        lambda it: renamed_part(it, "gptq/m/../../../up.json"),
        "outside the folder",
    ),
    "a part of another artifact": (lambda it: renamed_part(it, "gptq/n/config.json"), "is no file of it"),
    "no parts": (lambda it: it["artifacts"][1].update(files={}), "sha256 is not that of its files"),
    "a part with another digest": (
        lambda it: it["artifacts"][1]["files"].update({"gptq/m/config.json": "00" * 32}),
        "sha256 is not that of its files",
    ),
    "a text for a count": (
        lambda it: it["artifacts"][1]["solving"]["counts"].update(damping="1"),
        r"solving\.counts\.damping: found '1'",
    ),
    "a fraction for tokens": (lambda it: it["calibration"].update(tokens=1.5), "calibration: found"),
    "a number without end": (lambda it: it["artifacts"][0].update(bpw=10**400), r"\.bpw: found '1000"),
    "half a letter": (lambda it: it["source"].update(name="\ud800"), "not JSON"),
    "a path with an end in it": (lambda it: renamed_file(it, "gguf/a\0.gguf"), "outside the folder"),
    "the folder itself": (lambda it: it["measurement"].update(path="."), "outside the folder"),
    "a measurement elsewhere": (lambda it: it["measurement"].update(path="../measurement.json"), "outside the folder"),
    "a measurement that is a text": (lambda it: it.update(measurement="m"), "expected StoredFile or NoneType"),
    "a link that leads away": (lambda it: renamed_file(it, "link/a.gguf"), "outside the folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_value_is_named_and_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    MANIFEST.write(folder)
    document = json.loads((folder / FILE).read_text(encoding="utf-8"))
    change, told = DAMAGES[damage]
    change(document)
    (folder / FILE).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(HermetiqError, match=told):
        Manifest.read(folder)


RECORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a rank of none": ("turn_ends", {"source_rank": 0}, r"turn_ends\[0\]: a place below 0 or a rank below 1"),
    "a place before the first": ("turn_ends", {"position": -1}, "a place below 0 or a rank below 1"),
    "a long text": ("turn_ends", {"text": "x" * 61}, "text of more than 60 characters, or that does not print"),
    "a text that clears the screen": ("turn_ends", {"text": "\x1b[2J"}, "that does not print"),
    "no number": ("turn_ends", {"artifact_logprob": "-inf"}, "artifact_logprob: found '-inf', expected float"),
    "a truth for a rank": ("turn_ends", {"artifact_rank": True}, "artifact_rank: found 'True'"),
    "a third matrix": ("tag_rows", {"matrix": "norm"}, r"tag_rows\[0\].matrix: found 'norm'"),
    "an id below zero": ("tag_rows", {"id": -1}, "an id below 0"),
    "a limit of none": ("tag_rows", {"limit": None}, "limit: found 'None', expected float"),
}


@pytest.mark.parametrize("damage", RECORDS)
def test_a_damaged_record_of_a_verification_is_refused(tmp_path: Path, damage: str) -> None:
    MANIFEST.with_verification(ARTIFACT.file, VERIFICATION).write(tmp_path)
    document = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    kind, change, told = RECORDS[damage]
    document["verification"][ARTIFACT.file][kind][0].update(change)
    (tmp_path / FILE).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(HermetiqError, match=told):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": NaN}', b"[" * 100_000],
    ids=lambda data: repr(data[:9]),
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(HermetiqError, match=r"not JSON|not a manifest"):
        Manifest.read(tmp_path)


def test_a_folder_without_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match="hermetiq export"):
        Manifest.read(tmp_path)


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(HermetiqError, match="cannot be read: Is a directory"):
        Manifest.read(tmp_path)
    (tmp_path / FILE).rmdir()
    MANIFEST.write(tmp_path)
    monkeypatch.setattr(typed_json, "LARGEST", 1000)
    with pytest.raises(HermetiqError, match="more than 1000 bytes"):
        Manifest.read(tmp_path)


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_digest_of_several_files_is_that_of_sha256sum(tmp_path: Path) -> None:
    files = {"b/c": "2" * 64, "b/a": "1" * 64}
    lines = f"{'1' * 64}  b/a\n{'2' * 64}  b/c\n"
    (tmp_path / "list").write_text(lines)
    assert combined_sha256(files) == sha256_of(tmp_path / "list")
    assert combined_sha256({"b/a": "1" * 64}) == "1" * 64
