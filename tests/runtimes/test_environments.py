"""Environments made on demand: real venvs, real pip, and packages of our own in place of the ones on the network."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hermetiq.errors import HermetiqError
from hermetiq.runtimes import cuda, environments
from hermetiq.runtimes.environments import RUNTIMES, Environment, Runtime, ensure, folder_of, is_ready

TOY = Environment("toy", "toyreader==1.0", (3, 11), (3, 99), (("TOY_BUILD", "1"),))


def wheel(folder: Path, name: str, *, requires: str = "", code: str = "") -> None:
    """A wheel with one module."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (
        f"Requires-Dist: {requires}\n" if requires else ""
    )
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that pip may take packages from; the cache and the requirement files are the test's own."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HERMETIQ_CACHE", str(tmp_path / "cache"))
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    (requirements / "toy.txt").write_text("toyhelper==1.0\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", requirements)
    monkeypatch.setattr(environments, "TORCH", "toytorch==1.0")
    monkeypatch.setattr(environments, "RUNTIMES", {"toy": Runtime("toy", ("gptq",), TOY)})
    return folder


def test_a_build_that_failed_starts_over_and_two_that_ask_at_once_build_once(shelf: Path, tmp_path: Path) -> None:
    wheel(shelf, "toytorch")
    with pytest.raises(HermetiqError, match="toyhelper") as caught:
        ensure("toy")
    log = Path(caught.value.where)
    assert "toytorch" in log.read_text()
    assert not is_ready(TOY)

    wheel(shelf, "toyhelper")
    wheel(shelf, "toyreader", requires="nowhere-to-be-found")
    code = f"""
        import sys
        from pathlib import Path
        from hermetiq.runtimes import environments as e
        e.REQUIREMENTS = Path({str(tmp_path / "requirements")!r})
        e.TORCH = "toytorch==1.0"
        toy = e.Environment("toy", "toyreader==1.0", (3, 11), (3, 99), (("TOY_BUILD", "1"),))
        e.RUNTIMES = {{"toy": e.Runtime("toy", ("gptq",), toy)}}
        steps = []
        print(e.ensure("toy", lambda what, share: steps.append(share)), len(steps))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted(child.communicate(timeout=120)[0].split() for child in both)
    python = folder_of(TOY) / "bin" / "python"
    assert told == [[str(python), "0"], [str(python), "4"]]

    assert is_ready(TOY)
    assert ensure("toy") == python
    done = subprocess.run([python, "-c", "import toytorch, toyhelper, toyreader"], check=False)
    assert done.returncode == 0


def test_other_pins_another_package_or_other_settings_are_another_folder(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {folder_of(TOY), folder_of(replace(TOY, package="toyreader==2.0")), folder_of(replace(TOY, settings=()))}
    TOY.requirements.write_text("toyhelper==2.0\n")
    assert len(before | {folder_of(TOY)}) == 4
    same = folder_of(TOY)
    monkeypatch.setattr(sys, "executable", sys.executable + "3")
    assert folder_of(TOY) == same
    assert folder_of(TOY).parent == shelf.parent / "cache" / "runtimes"


def test_no_fitting_python_is_said_with_what_would_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    with pytest.raises(HermetiqError, match=r"Python 3.8 to 3.11.*put python3.11 on PATH"):
        ensure("auto-gptq")
    (tmp_path / "python3.10").write_text("#!/bin/sh\n")
    (tmp_path / "python3.10").chmod(0o755)
    assert environments.interpreter(environments.AUTO_GPTQ) == (str(tmp_path / "python3.10"), "3.10")


def test_unknown_runtimes_and_those_that_cannot_run_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HermetiqError, match="auto-gptq, autoawq, gptqmodel, transformers"):
        ensure("autogptq")
    monkeypatch.setattr(cuda, "lacking", lambda: "no CUDA compiler (nvcc)")
    with pytest.raises(HermetiqError, match=r"exllamav2 cannot run here: no CUDA compiler \(nvcc\) \(use a machine"):
        ensure("exllamav2")


def test_a_package_for_the_gpu_gets_this_torch_and_is_compiled_under_its_own_roof(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's import stands for the compiler: it fails where its tools or the place for its result are not told."""
    code = """
        import os, torch, pathlib
        place = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"])
        place.mkdir()
        (place / "told").write_text(os.environ["PATH"] + "\\n" + torch.__file__)
    """
    toy = replace(TOY, name="toyreader", gpu=True)
    toy.requirements.write_text("toyhelper==1.0\n")
    monkeypatch.setattr(environments, "RUNTIMES", {"toy": Runtime("toy", ("exl2",), toy)})
    monkeypatch.setattr(cuda, "lacking", lambda: "")
    wheel(shelf, "toyhelper")
    wheel(shelf, "toyreader", code=textwrap.dedent(code))
    stages: list[str] = []
    python = ensure("toy", lambda what, share: stages.append(what))
    assert stages[-1] == "compiling toyreader==1.0"
    path, torch_file = (folder_of(toy) / "extensions" / "told").read_text().split("\n")
    assert path.split(":")[0] == str(python.parent)
    assert torch_file == torch.__file__
    assert "CUDA_VISIBLE_DEVICES" not in environments.variables(toy, python)
    assert environments.variables(TOY, python) == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    "environment",
    sorted({item.environment for item in RUNTIMES.values()}, key=str),
    ids=lambda item: item.name,
)
def test_requirement_files_pin_everything_and_name_no_registry(environment: Environment) -> None:
    lines = environment.requirements.read_text().splitlines()
    names = [line.partition("==")[0].lower() for line in lines]
    assert all(line.partition("==")[2] for line in lines)
    assert not any(character in line for line in lines for character in "/@+")
    assert "torch" not in names
    assert len(set(names)) == len(names)
