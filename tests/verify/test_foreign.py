"""Verification with a named package: its checks stand beside ours, and what it does not read is said."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.quantize.spec import parse
from hermetiq.runtimes import cuda
from hermetiq.verify import ArtifactReport, foreign, native, verify
from tests.fixtures.packages import stand_in
from tests.fixtures.packed import packed_folder
from tests.verify.test_folder_artifact import AWQ, CHECKS, GPTQ, write_manifest
from tests.verify.test_verify import failed, small_questions

THEIRS = [f"auto-gptq-{name}" for name in ("stop-ids", "tokens", "agreement", "smoke-stops", "smoke-leaks")]
PACKAGE = """
    import transformers
    from hermetiq.checkpoint import open_checkpoint

    class AutoGPTQForCausalLM:
        def __init__(self, model): self.model = model

        @classmethod
        def from_quantized(cls, folder, **options):
            if folder.endswith("refused"): raise ValueError("a layer I have never seen")
            stored = open_checkpoint(folder)
            config = transformers.AutoConfig.from_pretrained(folder)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=options["torch_dtype"])
            model.load_state_dict({name: stored.load(name).float() for name in stored.model.expected_tensors()})
            if folder.endswith("misread"): model.lm_head.weight.data[32000] = 0
            return cls(model)
"""


@pytest.fixture(scope="module")
def reports(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ArtifactReport]]:
    """By name: one folder that the package reads, one that it misreads, one that it refuses, one of another format."""
    out = tmp_path_factory.mktemp("foreign")
    artifacts = {"good": GPTQ, "misread": GPTQ, "refused": GPTQ, "other": AWQ}
    for name in ("good", "other"):
        packed_folder(out / name, trained_hermes, parse(artifacts[name]))
    for name in ("misread", "refused"):
        shutil.copytree(out / "good", out / name)
    source = open_checkpoint(trained_hermes)
    write_manifest(out, source, artifacts)
    answers = native.answers
    with pytest.MonkeyPatch.context() as patch, small_questions():
        # Our own answers take the longest, and one folder of ours and theirs is enough to mix them up.
        patch.setattr(native, "answers", lambda item, *rest: answers(item, *rest) if item.path.name == "good" else ())
        package = stand_in(tmp_path_factory.mktemp("package"), patch)
        package.write_text(textwrap.dedent(PACKAGE))
        yield {report.file: report for report in verify(out, source, runtime="auto-gptq")}


def test_the_checks_of_the_package_stand_beside_ours(reports: dict[str, ArtifactReport]) -> None:
    report = reports["good"]
    assert report.passed, report.checks
    assert {check.name for check in report.checks} == {"auto-gptq", *THEIRS, *CHECKS.split()}
    assert report.verification.figures["auto-gptq_logit_difference"] < foreign.EXACT
    assert report.verification.figures["auto-gptq_smoke_stopped"] == 4


def test_a_package_that_computes_another_model_fails_by_its_own_name(reports: dict[str, ArtifactReport]) -> None:
    assert failed(reports["misread"]) - {"auto-gptq-smoke-leaks"} == {"auto-gptq-agreement", "auto-gptq-smoke-stops"}


def test_a_package_that_does_not_run_fails_one_check_with_its_words(reports: dict[str, ArtifactReport]) -> None:
    (check,) = (check for check in reports["refused"].checks if not check.passed)
    assert check.name == "auto-gptq"
    assert "a layer I have never seen" in check.reason


def test_a_format_that_the_package_does_not_read_is_a_note(reports: dict[str, ArtifactReport]) -> None:
    assert reports["other"].passed
    assert reports["other"].verification.notes == ("auto-gptq does not read awq; not asked",)


@pytest.mark.parametrize(
    ("name", "specs", "told"),
    [
        ("vllm", [GPTQ], "no runtime 'vllm'.*auto-gptq, autoawq"),
        ("exllamav2", ["exl2:4.65bpw"], r"exllamav2 cannot run here: no GPU that torch sees \(use a machine"),
        ("autoawq", ["exl2:4.65bpw"], "does not read exl2.*--runtime exllamav2"),
        ("auto-gptq", [AWQ, "gguf:Q8_0"], "does not read awq; .* gguf.*--runtime autoawq or gptqmodel or transformers"),
        ("autoawq", ["gguf:Q8_0"], "does not read gguf.*llama.cpp"),
        ("gptqmodel", ["gptq:4bit-g64-asym"], "it reads -v2.*--runtime auto-gptq or transformers"),
        ("auto-gptq", ["gptq:4bit-g64-v2"], "would misread -v2.*--runtime gptqmodel or transformers"),
    ],
)
def test_a_runtime_that_can_say_nothing_is_refused_with_those_that_can(
    name: str, specs: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "lacking", lambda: "no GPU that torch sees")
    with pytest.raises(HermetiqError, match=f"(?s){told}"):
        foreign.require_reader(name, [parse(spec) for spec in specs])


def test_one_readable_artifact_is_enough() -> None:
    foreign.require_reader("gptqmodel", [parse("gguf:Q8_0"), parse("gptq:4bit-g64-asym-v2")])
