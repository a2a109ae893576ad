"""EXL2 in its own reader: the real worker and its protocol, with a package of our own in exllamav2's place."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from hermetiq.checkpoint import open_checkpoint
from hermetiq.formats.legacy import legacy_note
from hermetiq.model import EMBEDDING, HEAD
from hermetiq.quantize.spec import parse
from hermetiq.runtimes import cuda
from hermetiq.verify import ArtifactReport, foreign, native, verify
from hermetiq.verify.foreign import Observed
from hermetiq.verify.judge import Findings
from tests.fixtures.packages import EXLLAMAV2, stand_in
from tests.fixtures.packed import packed_folder
from tests.verify.test_folder_artifact import EXL2, write_manifest
from tests.verify.test_verify import small_questions

CHECKS = ("stop-ids", "tokens", "agreement", "weights", "smoke-stops", "smoke-leaks")


@pytest.fixture(scope="module")
def folder(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only artifact of an export."""
    out = tmp_path_factory.mktemp("exllamav2")
    packed_folder(out / "m", trained_hermes, parse(EXL2))
    write_manifest(out, open_checkpoint(trained_hermes), {"m": EXL2})
    return out / "m"


@pytest.fixture(scope="module")
def report(folder: Path, trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactReport]:
    with pytest.MonkeyPatch.context() as patch, small_questions():
        patch.setattr(native, "answers", lambda *_: ())
        patch.setattr(cuda, "lacking", lambda: "")
        package = stand_in(tmp_path_factory.mktemp("package"), patch, "exllamav2")
        package.write_text(textwrap.dedent(EXLLAMAV2))
        (found,) = verify(folder.parent, open_checkpoint(trained_hermes), runtime="exllamav2")
        yield found


def test_weights_logits_tokens_and_answers_are_held_against_ours(report: ArtifactReport) -> None:
    assert report.passed, report.checks
    assert {f"exllamav2-{name}" for name in CHECKS} < {check.name for check in report.checks}
    assert report.verification.figures["exllamav2_logit_difference"] < 1e-3
    assert report.verification.figures["exllamav2_smoke_stopped"] == 4
    assert report.verification.notes == (legacy_note(parse(EXL2)),)


def test_layers_that_the_two_read_differently_are_counted_and_the_first_is_named(folder: Path) -> None:
    artifact = open_checkpoint(folder)
    packed = [name for name in artifact.model.expected_tensors() if name.endswith("_proj.weight")] + [HEAD]
    same = {name: sha256(artifact.load(name).half().numpy().tobytes()).hexdigest() for name in packed}
    seen = Observed("exllamav2", Findings(), weights=same)
    (check,) = foreign.weights(seen, artifact).checks
    assert (check.name, check.passed, check.value, check.limit) == ("exllamav2-weights", True, 0, 0)

    up = "model.layers.1.mlp.up_proj.weight"
    cases = {
        "another matrix": (same | {up: same[HEAD]}, 1, up),
        "one that it has not": ({name: value for name, value in same.items() if name != up}, 1, up),
        "one that only it takes for packed": (same | {EMBEDDING: ""}, 1, EMBEDDING),
        "none at all": ({}, len(packed), packed[0]),
    }
    for case, (told, count, first) in cases.items():
        (check,) = foreign.weights(replace(seen, weights=told), artifact).checks
        assert (check.passed, check.value) == (False, count), case
        assert check.reason.endswith(f" linears differ, the first: {first}"), case
    assert foreign.weights(replace(seen, weights=None), artifact) == Findings()


@pytest.mark.parametrize(
    ("asked", "lacks", "told"),
    [
        (None, "", "exllamav2, the one reader of exl2, was not asked: --runtime exllamav2 asks it"),
        ("autoawq", "no GPU", "exllamav2, the one reader of exl2, was not asked: no GPU"),
        ("exllamav2", "no GPU", ""),
    ],
)
def test_the_one_reader_is_named_where_it_was_not_asked(
    asked: str | None, lacks: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "lacking", lambda: lacks)
    assert foreign.unasked(asked, parse(EXL2)) == told
    assert foreign.unasked(asked, parse("gptq:4bit-g64")) == ""


def test_gptq_of_other_widths_is_not_given_to_it() -> None:
    assert foreign.unread("exllamav2", parse("gptq:4bit-g64-v2")) == ""
    assert foreign.unread("exllamav2", parse("gptq:8bit-g64")) == "exllamav2 takes every GPTQ folder for one of 4 bits"
    assert foreign.unread("exllamav2", parse("exl2:2.5bpw")) == ""
