"""The command line as its users meet it: exit status, stdout and stderr, errors without tracebacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hermetiq import __version__, cli, screen
from hermetiq.manifest import Ending
from hermetiq.rules import RULES
from tests.fixtures.models import copy_of, tiny_checkpoint
from tests.test_manifest import MANIFEST
from tests.verify.test_verify import small_questions


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Program = Callable[..., Outcome]


@pytest.fixture
def hermetiq(capfd: pytest.CaptureFixture[str]) -> Program:
    """Runs the program in this process, as `hermetiq ARGUMENTS` would."""

    def run(*arguments: object) -> Outcome:
        status: object = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        captured = capfd.readouterr()
        return Outcome(int(str(status or 0)), captured.out, captured.err)

    return run


def test_help_answers_in_half_a_second() -> None:
    """The best of three, since another test may be busy on this machine."""

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hermetiq", "--help"], capture_output=True, check=True, timeout=30)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_version(hermetiq: Program) -> None:
    assert hermetiq("--version") == Outcome(0, f"hermetiq {__version__}\n", "")


def test_rules_are_listed_and_explained(hermetiq: Program) -> None:
    listed = hermetiq("rule")
    assert listed.status == 0
    assert all(name in listed.out for name in RULES)
    for name, rule in RULES.items():
        explained = hermetiq("rule", name)
        assert explained.status == 0
        assert rule.why in explained.out.replace("\n", " ")
    unknown = hermetiq("rule", "eos-missmatch")
    assert (unknown.status, unknown.out) == (2, "")
    assert "eos-mismatch" in unknown.err


def test_inspect_prints_stable_json(hermetiq: Program, trained_hermes: Path) -> None:
    outcome = hermetiq("inspect", trained_hermes, "--json")
    assert outcome.status == 0
    document = json.loads(outcome.out)
    assert list(document) == ["path", "contract", "findings"]
    assert document["path"] == str(trained_hermes)
    assert document["contract"]["terminator_id"] == 32000
    assert document["findings"] == []


def test_inspect_fails_with_a_finding_by_name(hermetiq: Program, hermes: Path, tmp_path: Path) -> None:
    broken = copy_of(hermes, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "eos_token_id": 2}))
    outcome = hermetiq("inspect", broken, "--no-weights")
    assert outcome.status == 1
    assert "eos-mismatch" in outcome.out
    (item,) = json.loads(hermetiq("inspect", broken, "--no-weights", "--json").out)["findings"]
    assert list(item) == ["rule", "severity", "file", "field", "found", "expected", "why", "repair"]
    assert (item["rule"], item["file"], item["field"]) == ("eos-mismatch", "config.json", "eos_token_id")
    assert hermetiq("inspect", broken, "--no-weights", "--ignore", "eos-mismatch").status == 0
    assert hermetiq("inspect", broken, "--no-weights", "--select", "double-bos").status == 0
    assert hermetiq("inspect", broken, "--select", "nonsense").status == 2


def test_export_dry_run_writes_nothing(hermetiq: Program, hermes: Path, tmp_path: Path) -> None:
    command = ("export", hermes, tmp_path / "out", "--to", "gguf:q4_k_m", "--to", "gguf:Q8_0", "--dry-run")
    plan = json.loads(hermetiq(*command, "--json").out)
    assert [file["spec"] for file in plan["files"]] == ["gguf:Q4_K_M", "gguf:Q8_0"]
    assert plan["disk"] == sum(file["bytes"] for file in plan["files"])
    assert "nominal" in hermetiq(*command).out
    assert not (tmp_path / "out").exists()


def test_export_then_verify(hermetiq: Program, trained_hermes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = hermetiq("export", trained_hermes, out, "--to", "gguf:Q8_0", "--to", "gguf:Q4_K_M", "--json")
    assert exported.status == 0, exported.err
    manifest = json.loads(exported.out)
    assert manifest == json.loads((out / "hermetiq.json").read_text())
    verified = hermetiq("verify", out, "--source", trained_hermes)
    assert verified.status == 0, verified.out + verified.err
    assert verified.out.count("pass") == 2
    assert set(json.loads((out / "hermetiq.json").read_text())["verification"]) == {
        artifact["file"] for artifact in manifest["artifacts"]
    }
    alien = hermetiq("verify", out, "--source", trained_hermes, "--runtime", "autoawq")
    assert alien.status == 2
    assert "autoawq does not read gguf" in alien.err
    with small_questions():
        impossible = hermetiq("verify", out, "--source", trained_hermes, "--max-kl", "0", "--json")
    assert impossible.status == 1
    assert not any(report["passed"] for report in json.loads(impossible.out))


def test_doctor_tells_the_same_as_a_table_and_as_json(
    hermetiq: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERMETIQ_CACHE", str(tmp_path))
    shown, told = hermetiq("doctor"), hermetiq("doctor", "--json")
    assert (shown.status, told.status) == (0, 0)
    lines = json.loads(told.out)
    assert list(lines[0]) == ["name", "state", "what", "formats", "remedy"]
    assert {"gptqmodel", "transformers", "exllamav2"} <= {line["name"] for line in lines}
    for line in lines:
        assert all(value in shown.out for value in (line["name"], line["state"], line["what"], line["remedy"]))


def test_doctor_installs_what_is_named_or_says_why_not(hermetiq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(cli, "ensure", lambda name, tick: installed.append(name))
    unknown = hermetiq("doctor", "--install", "autoawq", "--install", "vllm")
    assert (unknown.status, installed) == (2, [])
    assert "no runtime 'vllm'" in unknown.err
    assert hermetiq("doctor", "--install", "exllamav2").status == 2
    assert hermetiq("doctor", "--install", "autoawq", "--json").status == 0
    assert installed == ["autoawq"]


def usage(tmp: Path, source: Path) -> dict[str, tuple[Sequence[object], str]]:
    (tmp / "a-file").write_text("not a model")
    (tmp / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)
    (tmp / "empty").mkdir()
    return {
        "no such path": (("inspect", tmp / "nowhere"), "nowhere"),
        "a file that is no model": (("export", tmp / "a-file", tmp / "out", "--to", "gguf:Q8_0"), "a-file"),
        "an empty folder": (("export", tmp / "empty", tmp / "out", "--to", "gguf:Q8_0"), "config.json"),
        "a corrupt gguf": (("export", tmp / "broken.gguf", tmp / "out", "--to", "gguf:Q8_0"), "broken.gguf"),
        "an unknown format": (("export", source, tmp / "out", "--to", "onnx:Q8_0"), "formats: gguf"),
        "an unknown recipe": (("export", source, tmp / "out", "--to", "gguf:Q9"), "Q4_K_M"),
        "no spec": (("export", source, tmp / "out"), "--to"),
        "a wrong flag": (("export", source, tmp / "out", "--too", "gguf:Q8_0"), "--too"),
        "an output that is a file": (("export", source, tmp / "a-file", "--to", "gguf:Q8_0"), "not a folder"),
        "verify without an export": (("verify", tmp / "empty", "--source", source), "hermetiq.json"),
        "an adapter that is none": (
            ("export", source, tmp / "out", "--to", "gguf:Q8_0", "--adapter", tmp / "empty"),
            "adapter_config.json",
        ),
    }


def test_unusable_input_is_one_error_with_nothing_written(hermetiq: Program, hermes: Path, tmp_path: Path) -> None:
    for case, (arguments, told) in usage(tmp_path, hermes).items():
        outcome = hermetiq(*arguments)
        assert outcome.status == 2 or arguments[0] == "inspect", case
        assert outcome.status != 0, case
        assert told in outcome.out + outcome.err, (case, outcome)
        assert "Traceback" not in outcome.out + outcome.err, case
        assert not (tmp_path / "out").exists(), case


def test_how_a_final_norm_was_settled_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    ending = Ending(ends=104, source=-1.0, rounded=-1.1875, settled=-0.999)
    settled = replace(MANIFEST, artifacts=tuple(replace(item, ending=ending) for item in MANIFEST.artifacts[:1]))
    screen.show_files(settled, Path("out"))
    told = "where 104 answers end, the terminator is +0.001 nats from the source's, -0.188 before"
    assert f"{MANIFEST.artifacts[0].file}: its final norm is settled; {told}" in capsys.readouterr().out
    screen.show_files(MANIFEST, Path("out"))
    assert "settled" not in capsys.readouterr().out


def test_control_characters_of_a_file_never_reach_the_terminal() -> None:
    assert screen.escape("a\x1b[31mb[bold]\n") == "a\\x1b[31mb\\[bold]\n"


def test_text_of_a_checkpoint_never_looks_like_a_line_of_ours() -> None:
    assert screen.one_line("a\nerror: b\t[red]") == "a\\nerror: b \\[red]"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "mödel 模型", tokenizer="bpe")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_output_is_whole_in_every_encoding(small: Path, encoding: str) -> None:
    command = [sys.executable, "-m", "hermetiq", "inspect", small, "--no-weights", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    told = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert json.loads(told.stdout.decode(encoding))["path"] == str(small)


def test_a_reader_that_goes_away_is_no_fault(small: Path) -> None:
    command = [sys.executable, "-m", "hermetiq", "inspect", small, "--no-weights", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.close()
        assert process.wait(timeout=60) == 1
        assert process.stderr
        assert process.stderr.read() == b""


@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_an_interrupt_ends_the_program_whatever_it_is_loading(small: Path, seconds: float) -> None:
    # Of all commands this one loads most, for seconds.
    command = [sys.executable, "-m", "hermetiq", "export", small, "out", "--to", "gptq:4bit-g64", "--dry-run"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
