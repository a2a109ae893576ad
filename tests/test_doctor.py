"""What the doctor says of this machine: the same that the environments would do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hermetiq import doctor
from hermetiq.doctor import Line
from hermetiq.runtimes import cuda, environments
from hermetiq.runtimes.environments import RUNTIMES


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERMETIQ_CACHE", str(tmp_path))


def lines() -> dict[str, Line]:
    return {line.name: line for line in doctor.examine()}


def test_every_part_has_a_line_and_nothing_is_installed(tmp_path: Path) -> None:
    found = lines()
    assert set(found) == {"python", "torch", "gpu", "llama.cpp", *RUNTIMES}
    assert found["llama.cpp"].state == "ready"
    assert found["gptqmodel"].formats == ("gptq", "awq")
    assert list(tmp_path.iterdir()) == []
    json.dumps([line.to_json() for line in found.values()])


def test_what_can_be_installed_names_the_command_and_is_ready_afterwards() -> None:
    line = lines()["gptqmodel"]
    assert (line.state, line.remedy) == ("not installed", "hermetiq doctor --install gptqmodel")
    folder = environments.folder_of(environments.GPTQMODEL)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    assert lines()["gptqmodel"].state == "not installed"
    (folder / environments.READY).touch()
    # transformers reads both formats through the same environment.
    assert {name for name, line in lines().items() if line.state == "ready"} >= {"gptqmodel", "transformers"}
    (folder / "bin" / "python").unlink()
    assert lines()["gptqmodel"].state == "not installed"


def test_what_cannot_work_here_has_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    monkeypatch.setattr(cuda, "lacking", lambda: "no GPU that torch sees")
    found = lines()
    assert found["exllamav2"].state == "missing"
    assert found["exllamav2"].what == "no GPU that torch sees"
    assert "NVIDIA GPU" in found["exllamav2"].remedy
    assert found["auto-gptq"].state == "missing"
    assert "Python 3.8 to 3.11" in found["auto-gptq"].what
    assert found["auto-gptq"].remedy == "put python3.11 on PATH"
