"""The README's commands do what it says: each is run here, or, for `make`, is a target that CI runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hermetiq import cli
from hermetiq.quantize.spec import GGUF_RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_hermetiq_commands_run_in_order(
    trained_hermes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(trained_hermes)
    ran = []
    for program, *arguments in COMMANDS:
        if program == "hermetiq":
            ran.append(arguments[0])
            with pytest.raises(SystemExit) as stop:
                cli.main(arguments)
            assert not stop.value.code, (arguments, capsys.readouterr())
    assert ran == ["inspect", "repair", "export", "export", "verify", "report", "recipes", "rule", "doctor"]


def test_the_other_commands_are_what_ci_runs() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    script = (ROOT / ".ci" / "run").read_text()
    others = [command for command in COMMANDS if command[0] != "hermetiq"]
    assert others == [["make", "demo"], ["make", "test"], ["pip", "install", "-e", "."]]
    for target in ("demo", "test"):
        assert target in targets
        assert re.search(rf"^make .*\b{target}\b", script, re.MULTILINE)


def test_types_and_links_are_complete() -> None:
    assert re.search(r"^GGUF types: (.*?)\. Tensor", README, re.MULTILINE)[1].split(", ") == list(GGUF_RECIPES)  # type: ignore[index]
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
