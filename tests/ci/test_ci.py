"""What continuous integration is told, and that a checkpoint's names cannot speak in its place."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from hermetiq.ci import junit, workflow_commands
from hermetiq.verification import Check, Verification
from hermetiq.verify.report import ArtifactReport
from tests.test_manifest import ARTIFACT, FOLDER

GOOD, BAD = Check("kl", True, 0.1, 0.7), Check("smoke-stops", False, 6, 8, "goes on behind <|im_end|>\x1b[0m & more")


def report(*checks: Check, notes: tuple[str, ...] = (), folder: bool = False) -> ArtifactReport:
    artifact = FOLDER if folder else ARTIFACT
    return ArtifactReport(artifact, Verification(artifact.sha256, checks, {}, notes))


def test_every_check_is_a_case_and_every_failure_says_why() -> None:
    root = ElementTree.fromstring(junit([report(GOOD, BAD, notes=("not asked",)), report(GOOD, folder=True)]))
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in root] == [
        (ARTIFACT.file, "2", "1"),
        (FOLDER.file, "1", "0"),
    ]
    assert [(case.get("classname"), case.get("name"), len(case)) for case in root.iter("testcase")] == [
        (ARTIFACT.file, "kl", 0),
        (ARTIFACT.file, "smoke-stops", 1),
        (FOLDER.file, "kl", 0),
    ]
    (failure,) = root.iter("failure")
    assert failure.get("message") == "goes on behind <|im_end|>\\u001b[0m & more"
    assert failure.text is not None
    assert failure.text.endswith("measured 6, limit 8")
    assert [out.text for out in root.iter("system-out")] == ["not asked"]


def test_half_a_surrogate_pair_is_spelled_out() -> None:
    assert b"\\ud800" in junit([report(replace(BAD, reason="\ud800"))])


def test_github_is_told_of_failures_alone_and_only_there() -> None:
    reports = [report(GOOD, BAD)]
    assert list(workflow_commands(reports, {})) == []
    (line,) = workflow_commands(reports, {"GITHUB_ACTIONS": "true"})
    assert line.startswith(f"::error title={ARTIFACT.file}%3A smoke-stops::goes on behind <|im_end|>")


def test_a_name_cannot_begin_a_command() -> None:
    hostile = replace(ARTIFACT, file="a,b::c\n::warning::x%")
    (line,) = workflow_commands(
        [ArtifactReport(hostile, Verification("", (replace(BAD, reason="\n::set-env::x\r"),), {}))],
        {"GITHUB_ACTIONS": "true"},
    )
    assert "\n" not in line
    assert "\r" not in line
    assert line == "::error title=a%2Cb%3A%3Ac%0A%3A%3Awarning%3A%3Ax%25%3A smoke-stops::%0A::set-env::x%0D"
