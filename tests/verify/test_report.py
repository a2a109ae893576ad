"""What a person reads of a verification: the worst turn ends, how often it stops, and what was not asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hermetiq import screen
from hermetiq.manifest import Artifact
from hermetiq.verification import TurnEnd, Verification
from hermetiq.verify import ArtifactReport

ARTIFACT = Artifact("gguf:Q4_K_M", "gguf/m-Q4_K_M.gguf", "ab" * 32, {}, 100, 4.8, 4.8)
ENDS = (
    TurnEnd(0, 9, "a little.", -0.1, 1, -0.2, 1),
    TurnEnd(1, 40, "[bold]the most[/]", -0.1, 1, -6.1, 44),
    TurnEnd(2, 12, "gained.", -0.5, 2, -0.1, 1),
    TurnEnd(3, 33, "some.", -0.25, 1, -1.5, 3),
    TurnEnd(4, 5, "more.", -0.25, 1, -2.5, 4),
    TurnEnd(5, 7, "broken.", -0.25, 1, None, 50),
)


def report(figures: dict[str, float], ends: Sequence[TurnEnd] = ENDS) -> ArtifactReport:
    return ArtifactReport(ARTIFACT, Verification("ab" * 32, (), figures, turn_ends=tuple(ends)))


def test_the_worst_ends_are_named_the_largest_loss_first(capfd: pytest.CaptureFixture[str]) -> None:
    screen.show_reports([report({"smoke_prompts": 8, "smoke_agreed": 8, "stop_rate": 0.875})])
    head, *worst = [line for line in capfd.readouterr().out.splitlines() if "turn ends" in line or " nats, " in line]
    assert head == (
        "m-Q4_K_M.gguf: the terminator is the first choice at 2 of 6 turn ends (source 5); "
        "in free generation it ended 88% of its answers"
    )
    assert worst == [
        "    -inf nats, rank 1 to 50: chat 5, token 7, …broken.",
        "    -6.00 nats, rank 1 to 44: chat 1, token 40, …[bold]the most[/]",
        "    -2.25 nats, rank 1 to 4: chat 4, token 5, …more.",
    ]


def test_what_did_not_answer_is_said_to_be_unasked(capfd: pytest.CaptureFixture[str]) -> None:
    screen.show_reports([report({"smoke_unasked": 8})])
    shown = capfd.readouterr().out
    assert "in free generation it was not asked" in shown
    assert " nan" not in shown.split("m-Q4_K_M.gguf: ")[1]


def test_an_artifact_without_turn_ends_says_nothing_of_them(capfd: pytest.CaptureFixture[str]) -> None:
    screen.show_reports([report({}, ())])
    assert "turn ends" not in capfd.readouterr().out


def test_json_has_the_records_under_stable_keys() -> None:
    document = report({}).to_json()
    assert list(document) == [
        *("file", "spec", "passed", "sha256", "checks", "figures", "notes", "turn_ends", "tag_rows")
    ]
    assert list(document["turn_ends"][0]) == [
        *("chat", "position", "text", "source_logprob", "source_rank", "artifact_logprob", "artifact_rank")
    ]
