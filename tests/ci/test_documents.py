"""The workflow, the action and the hook that docs/ci.md shows are what their programs accept, and do what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermetiq import cli
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from tests.fixtures.models import copy_of, edit_json

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
WORKFLOW, HOOK_CONFIG = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
STEPS: list[dict[str, Any]] = yaml.safe_load(WORKFLOW)["jobs"]["verify"]["steps"]


@pytest.mark.parametrize("kind", ["workflows", "actions"])
def test_github_takes_them(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "workflow.yml"
    file.write_text(WORKFLOW if kind == "workflows" else (ROOT / "action.yml").read_text())
    lint = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.github-{kind}"]
    done = subprocess.run([*lint, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    # What the line above relies on.
    file.write_text(file.read_text().replace("steps:", "stepps:"))
    assert subprocess.run([*lint, file], capture_output=True, timeout=60).returncode == 1


def test_the_workflow_gives_the_action_what_it_asks_for() -> None:
    (step,) = (step for step in STEPS if step.get("uses", "").startswith("hermetiq/"))
    required = {name for name, item in ACTION["inputs"].items() if item.get("required")}
    assert required <= set(step["with"]) <= set(ACTION["inputs"])


@pytest.mark.parametrize("optional", [True, False])
def test_inputs_of_the_action_arrive_as_they_are(optional: bool, tmp_path: Path) -> None:
    (tmp_path / "hermetiq").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "hermetiq").chmod(0o755)
    hostile = "a b; $(touch broken) '\""
    given = {"ARTIFACTS": hostile, "SOURCE": "model", "JUNIT": "x.xml"}
    given |= dict.fromkeys(("ADAPTER", "MAX_KL", "RUNTIME"), hostile if optional else "")
    script = ACTION["runs"]["steps"][1]
    assert set(script["env"]) == set(given)
    assert "${{" not in script["run"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", script["run"]], cwd=tmp_path, env={"PATH": path, **given}, capture_output=True, check=True
    )
    more = ["--adapter", hostile, "--max-kl", hostile, "--runtime", hostile] if optional else []
    assert json.loads(done.stdout) == ["verify", hostile, "--source", "model", "--junit", "x.xml", *more]
    assert not (tmp_path / "broken").exists()


def test_commands_do_what_the_page_says(
    trained_hermes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(trained_hermes)
    export(prepare("model", [parse("gguf:Q8_0")]), tmp_path / "out")
    verify, tested = COMMANDS
    run(verify, 0)
    run("hermetiq report out", 0)
    assert {path.name for path in tmp_path.rglob("*.xml")} == {"hermetiq.xml"}
    assert all(f"hermetiq {words}" in WORKFLOW for words in ("export model out", "report out"))
    # Without the source, the verification that was just made is believed; it takes a second, not a walk.
    done = subprocess.run(
        [sys.executable, "-m", *tested.split()[:3], "-p", "no:cacheprovider", "-c", "/dev/null"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)
    capsys.readouterr()


def run(command: str, status: int) -> None:
    program, *arguments = command.split()
    assert program == "hermetiq"
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert (stop.value.code or 0) == status


def test_the_hook_reads_a_folder_without_weights(
    hermes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hook,) = HOOKS
    assert [item["id"] for repo in yaml.safe_load(HOOK_CONFIG)["repos"] for item in repo["hooks"]] == [hook["id"]]
    copy_of(hermes, tmp_path / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    # The copy's weights are a link to those of every other test.
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "model.safetensors").write_text(pointer)
    touched = [str(path) for path in (tmp_path / "model").iterdir() if re.search(hook["files"], str(path))]
    assert {Path(path).name for path in touched} >= {"tokenizer.json", "config.json", "tokenizer.model"}
    assert not any("safetensors" in path for path in touched)
    command = " ".join([hook["entry"], *touched])
    run(command, 0)
    edit_json(tmp_path / "model" / "tokenizer_config.json", eos_token="</s>")
    run(command, 1)
    assert "eos-mismatch" in capsys.readouterr().out


def test_the_hook_tells_of_folders_that_are_no_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"hermetiq pre-commit {tmp_path / 'tokenizer.json'}", 0)
    assert "no config.json" in capsys.readouterr().out


def test_without_weights_there_is_no_forward_pass(hermes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"hermetiq inspect {hermes} --files-only --forward", 2)
    assert "need the weights" in capsys.readouterr().err
