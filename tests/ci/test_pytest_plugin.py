"""A failing check of an artifact is a failing test, in a real pytest run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq.manifest import Artifact, Manifest, combined_sha256, sha256_of
from hermetiq.pytest_plugin import Result, believed
from hermetiq.verification import Check, Verification
from tests.test_manifest import ARTIFACT, MANIFEST

FILE = "gguf/m-Q8_0.gguf"
STOPS = Check("smoke-stops", False, 6, 8, "goes on behind <|im_end|>")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An export with one artifact, whose last verification found that one prompt of two does not stop."""
    (tmp_path / "gguf").mkdir()
    (tmp_path / FILE).write_bytes(b"weights")
    files = {FILE: sha256_of(tmp_path / FILE)}
    artifact = replace(ARTIFACT, file=FILE, files=files, sha256=combined_sha256(files))
    found = Verification(artifact.sha256, (Check("kl", True, 0.1, 0.7), STOPS), {})
    manifest(artifact, found).write(tmp_path)
    return tmp_path


def manifest(artifact: Artifact, found: Verification | None) -> Manifest:
    known = {} if found is None else {artifact.file: found}
    return replace(MANIFEST, artifacts=(artifact,), measurement=None, verification=known)


def test_each_check_is_a_test(out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-c", "/dev/null", "--rootdir", tmp_path, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--hermetiq-artifact", out, tmp_path], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "1 failed" in done.stdout
    assert f"{FILE}::smoke-stops" in done.stdout
    assert "goes on behind <|im_end|>" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_no_export_is_a_usage_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", tmp_path, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--hermetiq-artifact", tmp_path, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no hermetiq.json; give the folder that `hermetiq export` wrote" in done.stderr


def test_what_was_verified_is_believed(out: Path) -> None:
    assert believed(out) == [
        Result(f"{FILE}::bytes", None),
        Result(f"{FILE}::kl", None),
        Result(f"{FILE}::smoke-stops", STOPS.reason),
    ]


def test_changed_bytes_are_a_fault(out: Path) -> None:
    (out / FILE).write_bytes(b"other weights")
    assert believed(out)[0] == Result(f"{FILE}::bytes", f"{FILE} is not what was exported")
    (out / FILE).unlink()
    assert believed(out)[0].fault


def test_an_artifact_that_was_never_verified_is_a_fault(out: Path) -> None:
    (artifact,) = Manifest.read(out).artifacts
    for found in (None, Verification("00" * 32, (), {})):
        manifest(artifact, found).write(out)
        bytes_, proven = believed(out)
        assert bytes_.fault is None
        assert proven.name == f"{FILE}::verified"
        assert proven.fault
