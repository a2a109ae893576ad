"""The way from a published model to verified artifacts, by the commands that its publisher would type."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hermetiq import cli
from hermetiq.chat.contract import ChatContract, derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.manifest import Manifest

FORMATS = ("gguf:Q8_0", "gptq:4bit-g64", "awq:4bit-g64", "exl2:6.0bpw")
IM_END, IM_START = 32_000, 32_001
CHATML_TAGS = {"<|im_end|>": IM_END, "<|im_start|>": IM_START}


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def hermetiq(*words: object) -> Said:
    """Run one command in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return Said(int(end.value.code or 0), out.getvalue(), err.getvalue())


def found(model: Path, *options: object) -> dict[str, set[str]]:
    """The files that `inspect` names, by rule; information is left out."""
    told: dict[str, set[str]] = {}
    for item in hermetiq("inspect", model, "--json", *options).json["findings"]:
        if item["severity"] != "info":
            told.setdefault(item["rule"], set()).add(item["file"])
    return told


def export(model: Path, out: Path, *options: object) -> Manifest:
    """One export to all formats."""
    specs = [word for spec in FORMATS for word in ("--to", spec)]
    said = hermetiq("export", model, out, *specs, "--rows", 4, "--row-tokens", 128, *options)
    assert said.status == 0, said.err
    manifest = Manifest.read(out)
    assert [artifact.spec for artifact in manifest.artifacts] == list(FORMATS)
    return manifest


def require_verified(model: Path, out: Path, *options: object) -> None:
    """Every check of every artifact passes, the smoke and the fidelity too."""
    said = hermetiq("verify", out, "--source", model, "--json", *options)
    failed = [(each["file"], check) for each in said.json for check in each["checks"] if not check["passed"]]
    assert failed == []
    assert said.status == 0
    assert len(said.json) == len(FORMATS)


def require_contract(
    out: Path,
    *,
    terminator: str,
    terminator_id: int,
    stop_ids: tuple[int, ...],
    tags: Mapping[str, int],
    stop_strings: tuple[str, ...] = (),
) -> None:
    """Each artifact, read for itself, is the same chat model."""
    for artifact in Manifest.read(out).artifacts:
        opened = open_checkpoint(out / artifact.file)
        contract: ChatContract = derive(opened)
        assert (contract.terminator, contract.terminator_id) == (terminator, terminator_id)
        assert opened.tokenizer.eos_token == terminator
        assert contract.stop_ids == stop_ids
        assert contract.stop_strings == stop_strings
        assert {tag.text: tag.id for tag in contract.tags} == tags
        for tag in contract.tags:
            assert opened.tokenizer.encode(tag.text) == [tag.id]
