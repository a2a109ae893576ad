"""What has ended is said, and only of what has."""

from __future__ import annotations

import pytest

from hermetiq.formats.legacy import legacy_finding, legacy_note
from hermetiq.quantize.spec import parse


def test_exl2_is_told_to_be_legacy_with_what_still_loads_it() -> None:
    found = legacy_finding(parse("exl2:4.65bpw"))
    assert found is not None
    assert (found.rule, found.severity, found.file) == ("legacy-format", "warning", "exl2:4.65bpw")
    for text in (found.found, legacy_note(parse("exl2:4.65bpw"))):
        assert "archived" in text
        assert "still loaded by exllamav2 0.3.2 and the branch exl2-checkpoint of TabbyAPI" in text
        assert "no longer by TabbyAPI's main branch, text-generation-webui, LocalAI" in text


@pytest.mark.parametrize("spec", ["gptq:4bit-g64", "awq:4bit-g64", "gguf:Q4_K_M"])
def test_formats_that_are_alive_are_not(spec: str) -> None:
    assert legacy_finding(parse(spec)) is None
    assert legacy_note(parse(spec)) == ""
