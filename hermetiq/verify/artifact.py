"""Verification as a straight line: what llama.cpp says of each file, one walk of the source, one walk of each artifact.

The runtime goes first, because the source is asked about the artifacts' own answers in the same pass as about the
held-out chats.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.manifest import Artifact, Check, Manifest, Verification, sha256_of
from hermetiq.progress import Ticker, part, silent
from hermetiq.quantize.spec import parse

from . import judge, reference
from .fidelity import compare
from .judge import Findings
from .observe import Observation, observe
from .reading import Reading, read_rows
from .reference import Reference
from .report import ArtifactReport
from .thresholds import Limits, limits_for


@dataclass(frozen=True)
class _Examined:
    """One artifact after its turn in the runtime."""

    artifact: Artifact
    path: Path
    sha256: str
    checkpoint: Checkpoint | None
    """None where our own reader cannot open it."""
    observation: Observation | None
    """None where llama.cpp does not run it."""
    findings: Findings

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Ids of its smoke prompts and its answers to them."""
        return tuple(answer.ids for answer in self.observation.answers) if self.observation else ()


def verify(
    folder: Path, source: Checkpoint, *, max_kl: float | None = None, tick: Ticker = silent
) -> tuple[ArtifactReport, ...]:
    """Hold every artifact of an export against its source, and write what was found into `folder/hermetiq.json`.

    Args:
        folder: what `export` wrote.
        source: the checkpoint it was made from, with the same adapter.
        max_kl: largest mean KL allowed, nats per token, in place of each type's own limit.

    Raises:
        HermetiqError: no manifest, a file is missing, or `source` is not the one the manifest names.
    """
    manifest = Manifest.read(folder)
    _require_source(manifest, source, folder)
    paths = [_present(manifest.path_of(artifact, folder)) for artifact in manifest.artifacts]
    asked = reference.read(source)
    count = len(paths)
    examined = [
        _examine(artifact, path, asked, part(tick, 0.5 * number / count, 0.5 * (number + 1) / count))
        for number, (artifact, path) in enumerate(zip(manifest.artifacts, paths, strict=True))
    ]
    answers = [answer for item in examined for answer in item.answers]
    whole = _walk(source, (*asked.rows, *answers), "reading the source", part(tick, 0.5, 0.6))
    states = iter(whole.states)
    held_out = Reading(list(islice(states, len(asked.rows))), whole.logits)
    reports = []
    for number, item in enumerate(examined):
        span = part(tick, 0.6 + 0.4 * number / count, 0.6 + 0.4 * (number + 1) / count)
        limits = limits_for(parse(item.artifact.spec), weights=source.model.weights, max_kl=max_kl)
        found = item.findings + _fidelity(item, asked, held_out, limits, span)
        answered = Reading(list(islice(states, len(item.answers))), whole.logits)
        if item.observation:
            found += judge.smoke_findings(item.observation, asked, answered, limits, source.tokenizer.decode)
        verification = Verification(item.sha256, found.checks, found.figures, found.notes)
        reports.append(ArtifactReport(item.artifact, verification))
        manifest = manifest.with_verification(item.artifact.file, verification)
    manifest.write(folder)
    return tuple(reports)


def _require_source(manifest: Manifest, source: Checkpoint, folder: Path) -> None:
    if source.fingerprint() != manifest.source.fingerprint:
        raise HermetiqError(
            f"{source.path} is not the checkpoint that this export was made from",
            where=str(folder),
            remedy=f"give --source {manifest.source.name}, with the --adapter of the export if it had one",
        )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise HermetiqError("the manifest names this file, and it is not there", where=str(path), remedy="export again")
    return path


def _examine(artifact: Artifact, path: Path, asked: Reference, tick: Ticker) -> _Examined:
    """Everything that needs no walk: bytes, the contract as our reader sees it, and what llama.cpp says."""
    tick(f"llama.cpp reads {path.name}", 0.0)
    digest = sha256_of(path)
    unchanged = digest == artifact.sha256
    reason = "" if unchanged else "the bytes of the file are not those that were exported"
    found = Findings((Check("bytes", unchanged, digest, artifact.sha256, reason),), notes=asked.notes)
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = open_checkpoint(path)
        found += Findings((judge.contract_check(asked.contract, derive(checkpoint)),))
    except HermetiqError as error:
        found += Findings((Check("contract", False, "unreadable", "readable", _told(error, path)),))
    observation: Observation | None = None
    try:
        observation = observe(path, asked, lambda share: tick(f"llama.cpp reads {path.name}", share))
    except CheckFailed as error:
        found += Findings((Check("runtime", False, "failed", "runs", _told(error, path)),))
    else:
        found += Findings((Check("runtime", True, "runs", "runs"),)) + judge.runtime_findings(asked, observation)
    return _Examined(artifact, path, digest, checkpoint, observation, found)


def _told(error: HermetiqError, path: Path) -> str:
    """What an error says about the file at `path`; the manifest keeps it, so this machine's folders stay out of it."""
    text = f"{error.where}: {error.what}" if error.where else error.what
    for folder in (path.parent, path.resolve().parent):
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def _walk(checkpoint: Checkpoint, rows: Sequence[Sequence[int]], what: str, tick: Ticker) -> Reading:
    tick(what, 0.0)
    return read_rows(checkpoint, rows, on_block=lambda done, blocks: tick(what, done / blocks))


def _fidelity(item: _Examined, asked: Reference, source: Reading, limits: Limits, tick: Ticker) -> Findings:
    """Source and artifact through the same walk, and the artifact's walk against what llama.cpp computes."""
    if item.checkpoint is None:
        return Findings()
    rows = item.checkpoint.model.rows
    if rows != asked.contract.rows:
        reason = f"the file has {rows} rows of vocabulary, the source {asked.contract.rows}"
        return Findings((Check("kl", False, "incomparable", limits.kl, reason),))
    try:
        artifact = _walk(item.checkpoint, asked.rows, f"comparing {item.path.name}", tick)
    except HermetiqError as error:
        return Findings((Check("kl", False, "unreadable", limits.kl, _told(error, item.path)),))
    measured = compare(
        list(zip(asked.rows, source.states, strict=True)),
        list(zip(asked.rows, artifact.states, strict=True)),
        source_logits=source.logits,
        artifact_logits=artifact.logits,
        ends=asked.ends,
        terminator=asked.contract.terminator_id,
    )
    found = judge.fidelity_findings(measured, limits)
    return found + judge.agreement_findings(item.observation, asked, artifact) if item.observation else found
