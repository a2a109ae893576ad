"""EXL2 in exllamav2 itself, which is installed and compiled on first use (`make test-gpu`).

Nobody has run this yet: it was written on a machine without a GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hermetiq.checkpoint import open_checkpoint
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from hermetiq.runtimes import cuda
from hermetiq.verify import verify
from tests.verify.test_verify import small_questions

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("spec", ["exl2:4.0bpw", "exl2:6.0bpw-h8", "gptq:4bit-g64"])
def test_exllamav2_reads_what_we_read_and_its_chats_stop(
    spec: str, trained_hermes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := cuda.lacking():
        pytest.skip(f"exllamav2 was not run: {reason}")
    if "HERMETIQ_CACHE" not in os.environ:
        monkeypatch.setenv("HERMETIQ_CACHE", str(Path(__file__).parents[2] / ".cache" / "hermetiq"))
    export(prepare(trained_hermes, [parse(spec)], rows=16, row_tokens=256), tmp_path / "out")
    with small_questions():
        (report,) = verify(tmp_path / "out", open_checkpoint(trained_hermes), runtime="exllamav2")
    theirs = {check.name: check for check in report.checks if check.name.startswith("exllamav2")}
    assert "exllamav2-weights" in theirs
    assert [check for check in theirs.values() if not check.passed] == []
    assert report.verification.figures["exllamav2_smoke_stopped"] == 4
