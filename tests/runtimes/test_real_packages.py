"""Artifacts in the packages people load them with: real packages, installed on first use (`make test-runtimes`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hermetiq.checkpoint import open_checkpoint
from hermetiq.quantize.spec import parse
from hermetiq.verify import foreign, reference
from hermetiq.verify.reading import read_rows
from hermetiq.verify.thresholds import limits_for
from tests.fixtures.packed import packed_folder

pytestmark = pytest.mark.runtimes

GPTQ = "gptq:4bit-g32"
READERS = [
    *((name, spec) for name in ("auto-gptq", "gptqmodel", "transformers") for spec in (GPTQ, "gptq:8bit-g32-actorder")),
    *((name, "gptq:4bit-g32-asym") for name in ("auto-gptq", "transformers")),
    *((name, "gptq:4bit-g32-asym-v2") for name in ("gptqmodel", "transformers")),
    *((name, "awq:4bit-g32") for name in ("autoawq", "gptqmodel", "transformers")),
]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments are kept beside the other things that tests make once, where nobody says otherwise."""
    if "HERMETIQ_CACHE" not in os.environ:
        monkeypatch.setenv("HERMETIQ_CACHE", str(Path(__file__).parents[2] / ".cache" / "hermetiq"))


@pytest.mark.parametrize(("name", "spec"), READERS, ids=lambda value: value)
def test_the_package_agrees_with_our_reader_and_ends_its_chats(
    name: str, spec: str, trained_hermes: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(str(trained_hermes))
    asked = reference.read(source)
    folder = packed_folder(tmp_path / "artifact", trained_hermes, parse(spec))
    seen = foreign.observe(name, folder, asked, source.tokenizer.decode)
    assert [check for check in seen.findings.checks if not check.passed] == []
    agreed = foreign.agreement(seen, asked, read_rows(open_checkpoint(str(folder)), asked.rows))
    answered = read_rows(source, [answer.ids for answer in seen.answers])
    limits = limits_for(parse(spec), weights=source.model.weights)
    ended = foreign.stops(seen, asked, answered, limits, source.tokenizer.decode)
    assert all(check.passed for check in (*agreed.checks, *ended.checks))
