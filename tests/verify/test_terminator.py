"""Records of turn ends, and the source that never stops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hermetiq.verification import LONGEST_TEXT
from hermetiq.verify.fidelity import Fidelity, Readiness
from hermetiq.verify.reference import Reference
from hermetiq.verify.terminator import CHOICES, never_stops, source_check, turn_end_findings
from tests.verify.test_smoke import CONTRACT

TEXTS = {1: "\N{REPLACEMENT CHARACTER}A cut ", 2: "line\n", 3: "日本", 4: "\x1b[31m", 5: "x" * 80}
ASKED = Reference(CONTRACT, ((1, 2, 90), (5, 3, 4, 90)), ((0, 1), (1, 2)), (), (), (), ())


def decode(ids: object) -> str:
    return "".join(TEXTS[index] for index in ids)  # type: ignore[attr-defined]


def measured(*artifact: tuple[float, int]) -> Fidelity:
    source = tuple(Readiness(row, position, -0.25, 1) for row, position in ASKED.ends)
    after = tuple(replace(end, logprob=value, rank=rank) for end, (value, rank) in zip(source, artifact, strict=True))
    return Fidelity(5, 0, 0, 1, 1, 1, source, after)


def test_each_end_has_its_place_its_text_and_both_models() -> None:
    found = turn_end_findings(measured((-0.5, 1), (-1.0, 3)), ASKED, decode)
    first, second = found.turn_ends
    assert (first.chat, first.position, first.text) == (0, 1, r"A cut line\n")
    assert second.text.endswith(r"x日本\x1b[31m")
    assert len(second.text) == LONGEST_TEXT
    assert (second.source_logprob, second.source_rank, second.artifact_logprob, second.artifact_rank) == (
        -0.25,
        1,
        -1,
        3,
    )
    assert [end.drop for end in found.turn_ends] == [0.25, 0.75]
    assert found.figures == {"terminator_first_source": 1, "terminator_first_artifact": 0.5}


def test_what_is_no_number_is_told_as_none_and_is_the_worst_loss() -> None:
    findings = turn_end_findings(measured((-9.0, 4), (math.nan, 94)), ASKED, decode)
    assert findings.turn_ends[1].artifact_logprob is None
    assert [end.chat for end in findings.verified("").most_lost] == [1, 0]


def test_an_end_that_gained_is_none_of_the_worst() -> None:
    assert turn_end_findings(measured((-0.1, 1), (-0.25, 1)), ASKED, decode).verified("").most_lost == ()


def ends(*ranks: int) -> list[Readiness]:
    return [Readiness(0, position, -9.5, rank) for position, rank in enumerate(ranks)]


@pytest.mark.parametrize("ranks", [(1, 1, 9000), (CHOICES, CHOICES, CHOICES), (1, CHOICES + 2, 2, 9000)])
def test_a_source_that_has_the_terminator_among_its_choices_stops(ranks: tuple[int, ...]) -> None:
    assert never_stops(ends(*ranks), CONTRACT) == ""
    assert source_check(ends(*ranks), CONTRACT).passed


def test_a_source_that_has_not_is_named_as_the_culprit() -> None:
    check = source_check(ends(1, CHOICES + 1, 9000), CONTRACT)
    assert (check.name, check.passed, check.value, check.limit) == ("never-stops", False, CHOICES + 1, CHOICES)
    assert "the source itself does not stop" in check.reason
    assert "<|im_end|> = 90 of median rank 41 and mean log-probability -9.50 nats where 3 turns end" in check.reason
    assert "padding" not in check.reason
    padded = replace(CONTRACT, pad_token_id=CONTRACT.terminator_id)
    assert never_stops(ends(9000), padded).endswith("; it is the padding token as well")
