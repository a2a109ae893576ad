"""Verification as a straight line: what llama.cpp says of each file, one walk of the source, one walk of each artifact.

The runtime goes first, because the source is asked about the artifacts' own answers in the same pass as about the
held-out chats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hermetiq.chat import contract as contracts
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import CheckFailed, HermetiqError, Refusal
from hermetiq.manifest import Artifact, Check, Manifest, Verification, sha256_of
from hermetiq.progress import Ticker, part, silent
from hermetiq.quantize.spec import parse

from . import parity, reference, smoke
from .fidelity import CHUNK, Fidelity, compare, logprobs
from .observe import Observation, observe
from .reference import Reading, Reference, walk_through
from .report import ArtifactReport
from .thresholds import RUNTIME_KL, Limits, limits_for


@dataclass(frozen=True)
class _Findings:
    """Checks, figures and notes as they come together for one artifact."""

    checks: tuple[Check, ...] = ()
    figures: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()

    def __add__(self, other: _Findings) -> _Findings:
        figures = {**(self.figures or {}), **(other.figures or {})}
        return _Findings(self.checks + other.checks, figures, self.notes + other.notes)


@dataclass(frozen=True)
class _Examined:
    """One artifact after its turn in the runtime."""

    artifact: Artifact
    path: Path
    checkpoint: Checkpoint | None
    observation: Observation | None
    findings: _Findings


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
    _same_source(manifest, source, folder)
    paths = [_present(manifest.path_of(artifact, folder)) for artifact in manifest.artifacts]
    asked = reference.read(source)
    count = len(paths)
    examined = [
        _examine(artifact, path, asked, part(tick, 0.5 * number / count, 0.5 * (number + 1) / count))
        for number, (artifact, path) in enumerate(zip(manifest.artifacts, paths, strict=True))
    ]
    answers = [answer.ids for item in examined for answer in (item.observation.answers if item.observation else ())]
    reading = _walk(source, (*asked.rows, *answers), "reading the source", part(tick, 0.5, 0.6))
    heard = _answers_by_artifact(examined, reading, len(asked.rows))
    reports = []
    for number, item in enumerate(examined):
        span = part(tick, 0.6 + 0.4 * number / count, 0.6 + 0.4 * (number + 1) / count)
        limits = limits_for(parse(item.artifact.spec), max_kl=max_kl)
        found = item.findings + _fidelity(item, asked, reading, limits, span)
        found += _smoke(item, asked, heard[number], limits, source)
        verification = Verification(sha256_of(item.path), found.checks, found.figures or {}, found.notes)
        reports.append(ArtifactReport(item.artifact, verification))
        manifest = manifest.with_verification(item.artifact.file, verification)
    manifest.write(folder)
    return tuple(reports)


def _same_source(manifest: Manifest, source: Checkpoint, folder: Path) -> None:
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
    unchanged = sha256_of(path) == artifact.sha256
    reason = "" if unchanged else "the bytes of the file are not those that were exported"
    found = _Findings((Check("bytes", unchanged, "unchanged" if unchanged else "changed", "unchanged", reason),))
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = open_checkpoint(path)
        differences = contracts.compare(asked.contract, contracts.derive(checkpoint))
        reason = "; ".join(f"{item.field}: source {item.source}, file {item.artifact}" for item in differences)
        found += _Findings((Check("contract", not differences, len(differences), 0, reason),))
    except Refusal as refusal:
        found += _Findings((Check("contract", False, "unreadable", "readable", str(refusal)),))
    try:
        observation = observe(path, asked, lambda share: tick(f"llama.cpp reads {path.name}", share))
    except CheckFailed as error:
        found += _Findings((Check("runtime", False, "failed", "loads", error.what),))
        return _Examined(artifact, path, checkpoint, None, found)
    return _Examined(artifact, path, checkpoint, observation, found + _parity(asked, observation))


def _parity(asked: Reference, seen: Observation) -> _Findings:
    """The contract as llama.cpp sees it: the same ids, the same BOS, the same stops."""
    tags = {tag.id for tag in asked.contract.tags}
    stops, notes = parity.check_stops(
        asked.contract, seen.stops, inside_turns=parity.inside_turns(asked.rows, asked.ends, tags)
    )
    checks = (
        parity.check_tokens(asked.texts, seen.tokens),
        parity.check_bos(asked.contract, seen.plain, seen.special),
        stops,
    )
    notes += parity.template_notes([prompt.text for prompt in asked.samples], seen.prompts)
    notes += parity.decomposition_notes(asked.decomposed, seen.decomposed)
    if asked.refused:
        notes += (f"the template refuses {asked.refused} held-out chats, which were left out",)
    return _Findings(checks, {"parity_texts": len(asked.texts)}, notes)


def _walk(checkpoint: Checkpoint, rows: Sequence[Sequence[int]], what: str, tick: Ticker) -> Reading:
    tick(what, 0.0)
    return walk_through(checkpoint, rows, on_block=lambda done, blocks: tick(what, done / blocks))


def _answers_by_artifact(examined: Sequence[_Examined], reading: Reading, first: int) -> list[Reading]:
    """The source's reading of each artifact's answers, which lie behind the held-out rows."""
    parts = []
    for item in examined:
        count = len(item.observation.answers) if item.observation else 0
        parts.append(replace(reading, states=reading.states[first : first + count]))
        first += count
    return parts


def _fidelity(item: _Examined, asked: Reference, source: Reading, limits: Limits, tick: Ticker) -> _Findings:
    """Source and artifact through the same walk, and the artifact's walk against what llama.cpp computes."""
    if item.checkpoint is None:
        return _Findings()
    try:
        artifact = _walk(item.checkpoint, asked.rows, f"comparing {item.path.name}", tick)
    except Refusal as refusal:
        return _Findings((Check("kl", False, "unreadable", limits.kl, str(refusal)),))
    measured = compare(
        list(zip(asked.rows, source.states[: len(asked.rows)], strict=True)),
        list(zip(asked.rows, artifact.states, strict=True)),
        source_logits=source.logits,
        artifact_logits=artifact.logits,
        ends=asked.ends,
        terminator=asked.contract.terminator_id,
    )
    found = _Findings(_fidelity_checks(measured, limits), _fidelity_figures(measured))
    return found + (_runtime_agreement(item.observation, asked, artifact) if item.observation else _Findings())


def _fidelity_checks(measured: Fidelity, limits: Limits) -> tuple[Check, ...]:
    drop = _mean_logprob(measured, "source") - _mean_logprob(measured, "artifact")
    worst = measured.worst_end
    before, after = measured.source_ends[worst], measured.artifact_ends[worst]
    at = f"worst at chat {after.row}, token {after.position}: {before.logprob:.2f} to {after.logprob:.2f} nats"
    # NaN compares false with everything, so each check is written to fail on it.
    kl, top1, kept = (
        measured.kl_mean <= limits.kl,
        measured.top1_agreement >= limits.top1,
        drop <= limits.terminator_drop,
    )
    return (
        Check("kl", kl, measured.kl_mean, limits.kl, "" if kl else "the distributions have moved too far"),
        Check("top1", top1, measured.top1_agreement, limits.top1, "" if top1 else "too many first choices changed"),
        Check("terminator", kept, drop, limits.terminator_drop, "" if kept else f"turns end less readily, {at}"),
    )


def _fidelity_figures(measured: Fidelity) -> dict[str, float]:
    worst = measured.worst_end
    return {
        "tokens": measured.tokens,
        "kl_mean": measured.kl_mean,
        "kl_p99": measured.kl_p99,
        "perplexity_source": measured.perplexity_source,
        "perplexity_artifact": measured.perplexity_artifact,
        "top1_agreement": measured.top1_agreement,
        "turn_ends": len(measured.source_ends),
        "terminator_logprob_source": _mean_logprob(measured, "source"),
        "terminator_logprob_artifact": _mean_logprob(measured, "artifact"),
        "terminator_rank_source": float(np.mean([end.rank for end in measured.source_ends])),
        "terminator_rank_artifact": float(np.mean([end.rank for end in measured.artifact_ends])),
        "terminator_worst_source": measured.source_ends[worst].logprob,
        "terminator_worst_artifact": measured.artifact_ends[worst].logprob,
    }


def _mean_logprob(measured: Fidelity, side: str) -> float:
    ends = measured.source_ends if side == "source" else measured.artifact_ends
    return float(np.mean([end.logprob for end in ends]))


def _runtime_agreement(seen: Observation, asked: Reference, artifact: Reading) -> _Findings:
    """llama.cpp and the walk compute the same model; where they do not, only our own reader understands the file."""
    divergences, terminators = [], []
    for index, theirs in seen.logprobs:
        row, position = asked.ends[index]
        ours = logprobs(artifact.logits(artifact.states[row][position : position + 1]))[0]
        other = torch.from_numpy(theirs)[: len(ours)]
        divergences.append(float((ours.exp() * (ours - other)).sum()))
        terminators.append(float(other[asked.contract.terminator_id]))
    kl = float(np.mean(divergences))
    passed = kl <= RUNTIME_KL
    reason = "" if passed else "llama.cpp computes another model from this file than its weights say"
    figures = {"runtime_kl": kl, "runtime_terminator_logprob": float(np.mean(terminators))}
    return _Findings((Check("runtime-agreement", passed, kl, RUNTIME_KL, reason),), figures)


def _smoke(item: _Examined, asked: Reference, source: Reading, limits: Limits, checkpoint: Checkpoint) -> _Findings:
    """Along the artifact's answers: does it stop where the source would, and keep its tags to itself?"""
    if item.observation is None:
        return _Findings()
    faults, leaks = [], []
    for answer, states in zip(item.observation.answers, source.states, strict=True):
        deciding = states[len(answer.prompt_ids) - 1 :]
        table = torch.cat([logprobs(source.logits(some)) for some in torch.split(deciding, CHUNK)])
        leads = smoke.stop_leads(table, asked.contract.stop_ids).tolist()
        faults.append(smoke.stop_fault(answer, leads, margin=limits.stop_margin))
        choices = table.argmax(dim=1).tolist()
        leaks.append(smoke.leak(answer, asked.contract, choices=choices, decode=checkpoint.tokenizer.decode))
    disagreed, leaked = [fault for fault in faults if fault], [fault for fault in leaks if fault]
    agreed = len(faults) - len(disagreed)
    checks = (
        Check("smoke-stops", not disagreed, agreed, len(faults), "; ".join(disagreed)),
        Check("smoke-leaks", not leaked, len(leaked), 0, "; ".join(leaked)),
    )
    stopped = sum(answer.generation.stopped for answer in item.observation.answers)
    return _Findings(checks, {"smoke_prompts": len(faults), "smoke_agreed": agreed, "smoke_stopped": stopped})
