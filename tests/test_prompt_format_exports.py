"""A model of any prompt format comes out as the same chat model: template, terminator, stops and their texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.chat.contract import compare, derive
from hermetiq.chat.probe import probe
from hermetiq.checkpoint import open_checkpoint
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from hermetiq.verify import verify
from tests.fixtures.speakers import SPEAKERS, speaking

SPECS = [parse("gguf:Q8_0"), parse("gptq:8bit-g32")]
SMALL = [name for name, speaker in SPEAKERS.items() if speaker.tokenizer == "bpe"]


@pytest.mark.parametrize("name", SMALL)
def test_the_contract_survives_the_export(name: str, tmp_path: Path) -> None:
    job = prepare(speaking(tmp_path / "model", SPEAKERS[name]), SPECS, rows=8, row_tokens=512)
    assert job.rows is not None
    assert job.rows.report.chats > 0
    assert job.rows.report.refused == 0
    # Gemma and early Mistrals have no system role: the user says it, as in their training.
    assert (job.rows.report.folded > 0) is (name in ("gemma", "mistral-v3"))
    manifest = export(job, tmp_path / "out")
    for artifact in manifest.artifacts:
        checkpoint = open_checkpoint(tmp_path / "out" / artifact.file)
        found = derive(checkpoint)
        assert compare(job.contract, found) == ()
        assert found.template.endswith(SPEAKERS[name].template)
        assert found.stop_strings == job.contract.stop_strings
        assert probe(checkpoint).renderings == probe(job.source).renderings


def test_a_model_without_a_system_role_is_verified(tmp_path: Path) -> None:
    """An untrained model cannot stop, which is told; whatever is no matter of training holds."""
    source = speaking(tmp_path / "model", SPEAKERS["gemma"])
    export(prepare(source, SPECS[:1]), tmp_path / "out")
    (report,) = verify(tmp_path / "out", open_checkpoint(source))
    assert {check.name for check in report.checks if not check.passed} == {"never-stops"}
    assert report.verification.figures["smoke_prompts"] == 8
    assert any("refuses 11 held-out chats" in note for note in report.verification.notes)
