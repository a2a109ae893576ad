"""What a package with CUDA code needs, told in one line: on machines of our own making."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from hermetiq.runtimes import cuda


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its only folder of programs, with all that is needed: a GPU, both compilers of CUDA 13, and Python's headers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(cuda, "TOOLKIT", tmp_path / "nowhere")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{tmp_path / 'bin'}")
    (tmp_path / "Python.h").touch()
    program(tmp_path / "c++")
    program(tmp_path / "bin" / "nvcc", "Cuda compilation tools, release 13.0, V13.0.88")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cusparse.h").touch()
    return tmp_path


def program(path: Path, says: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says!r}\n")
    path.chmod(0o755)


def test_nothing_is_missing_where_all_is_there(machine: Path) -> None:
    assert cuda.lacking() == ""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bin/nvcc", "no CUDA compiler (nvcc)"),
        ("include/cusparse.h", "no CUDA libraries beside nvcc (cusparse.h)"),
        ("c++", "no C++ compiler (c++)"),
        ("Python.h", "no header files of Python (Python.h)"),
    ],
)
def test_what_is_missing_is_named(machine: Path, name: str, told: str) -> None:
    (machine / name).unlink()
    assert cuda.lacking() == told


def test_everything_that_is_missing_makes_one_line(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (machine / "bin" / "nvcc").unlink()
    assert cuda.lacking() == "no GPU that torch sees, no CUDA compiler (nvcc)"


def test_a_compiler_of_another_version_than_torch_is_none(machine: Path) -> None:
    program(machine / "bin" / "nvcc", "Cuda compilation tools, release 12.4, V12.4.131")
    assert cuda.lacking() == "nvcc is of CUDA 12, torch of CUDA 13"


def test_the_toolkit_is_the_one_with_libraries_unless_one_is_named(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda.toolkit() == machine
    usual = machine / "nowhere"
    program(usual / "bin" / "nvcc")
    assert cuda.toolkit() == machine
    (machine / "include").rename(usual / "include")
    assert cuda.toolkit() == usual
    monkeypatch.setenv("CUDA_HOME", str(machine))
    assert cuda.toolkit() == machine
    monkeypatch.setenv("CUDA_HOME", str(machine / "elsewhere"))
    assert cuda.toolkit() is None
