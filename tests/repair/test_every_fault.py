"""The faults that `inspect` is tested with, all that a repair can mend at once: none is left, and nothing is twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.chat.checks import CHECKS
from hermetiq.repair import repair
from tests.chat.test_mutations import MUTATIONS, Mutation
from tests.fixtures.models import copy_of
from tests.repair.test_repair import contents

REFUSED = {"template-missing", "template-unsafe", "source-quantized", "source-incomplete", "remote-code", "turn-end"}
"""Nothing in such a folder says what a chat with the model looks like, or there is no model."""
LEFT = {
    *("weight-nan", "f16-overflow", "tag-untrained", "duplicate-token", "pretokenizer-unknown"),
    *("template-dialect", "template-tokens"),
}
"""What stays, and is told with the reason why."""
ELSEWHERE = {
    *("merge-vocab", "merge-rows", "no-delta", "tensors-lost"),  # Found against other models.
    *("not-quantized", "kquant-shape", "never-stops", "adapter-vocab"),  # Of artifacts, of running, of adapters.
    *("head-tie", "vocab-overflow", "vocab-padding"),  # In test_head.py and test_rows.py; padding is no fault.
}
MENDED = [each for each in MUTATIONS if each.rule not in REFUSED | LEFT | ELSEWHERE]


def test_every_rule_is_mended_left_or_refused() -> None:
    assert set(CHECKS) <= {each.rule for each in MENDED} | REFUSED | LEFT | ELSEWHERE


@pytest.mark.parametrize("part", [0, 1])
def test_faults_are_mended_for_good(part: int, hermes: Path, tmp_path: Path) -> None:
    """Mutations of one field go into different parts, as the later one would hide the other."""
    places = list(dict.fromkeys((each.file, each.field) for each in MENDED))
    chosen: list[Mutation] = []
    for place in places:
        chosen += [each for each in MENDED if (each.file, each.field) == place][part : part + 1]
    source = copy_of(hermes, tmp_path / "broken")
    for mutation in chosen:
        mutation.apply(source)
    result = repair(str(source), tmp_path / "out")
    assert result.unrepaired == ()
    assert {each.rule for each in chosen} <= {each.rule for each in result.changes}
    again = repair(str(tmp_path / "out"), tmp_path / "again")
    assert again.changes == ()
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
