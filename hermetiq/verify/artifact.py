"""Verification as a straight line: what each artifact says for itself, a walk of the source, a walk of each artifact.

The artifacts answer first, because the source is asked about their own answers in the same pass as about the held-out
chats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.formats.legacy import legacy_note
from hermetiq.manifest import Manifest
from hermetiq.progress import Ticker, part, silent
from hermetiq.stages import Stopwatch
from hermetiq.verification import Check

from . import folder_artifact, foreign, gguf_artifact, judge, reference, stored_tensors, terminator
from .examined import Examine, Examined, Stored, on_disk, told
from .fidelity import Fidelity, compare, turn_ends_of
from .judge import Findings
from .reading import Reading, read_rows
from .reference import Reference
from .report import ArtifactReport
from .source import require_source
from .tag_rows import TagRows
from .thresholds import Limits, limits_for, require_served

EXAMINE: dict[str, Examine] = {
    "gguf": gguf_artifact.examine,
    "gptq": folder_artifact.examine,
    "awq": folder_artifact.examine,
    "exl2": folder_artifact.examine,
}
"""By format of the spec."""


def verify(
    folder: Path,
    source: Checkpoint,
    *,
    max_kl: float | Mapping[str, float] | None = None,
    runtime: str | None = None,
    tick: Ticker = silent,
) -> tuple[ArtifactReport, ...]:
    """Hold every artifact of an export against its source, and write what was found into `folder/hermetiq.json`.

    Args:
        folder: what `export` wrote.
        source: the checkpoint it was made from, with the same adapter.
        max_kl: largest mean KL allowed, nats per token, in place of each type's own limit: for all, or by spec
            (`gguf:Q4_K_M`) or format (`gguf`).
        runtime: a package (of `hermetiq.runtimes.environments.RUNTIMES`) that is asked about every artifact it reads.

    Raises:
        HermetiqError: no manifest, a file is missing, or `source` is not the one the manifest names; `max_kl` names no
            artifact; there is no such runtime, it cannot be installed here, or it reads none of the artifacts.
    """
    manifest = Manifest.read(folder)
    require_source(folder, manifest, source)
    stored = [on_disk(folder, manifest, artifact) for artifact in manifest.artifacts]
    require_served(max_kl, [item.spec for item in stored])
    if runtime is not None:
        foreign.require_reader(runtime, [item.spec for item in stored])
    asked = reference.read(source, base_model=not manifest.source.contract.is_chat)
    count, watch, examined = len(stored), Stopwatch(), []
    for number, each in enumerate(stored):
        span = part(tick, 0.5 * number / count, 0.5 * (number + 1) / count)
        with watch.stage(f"ask {each.artifact.file}"):
            examined.append(_examine(each, asked, source, runtime, span))
    answers = [answer.ids for item in examined for answer in item.all_answers]
    with watch.stage("read the source"):
        whole = _walk(source, (*asked.rows, *answers), "reading the source", part(tick, 0.5, 0.6))
    states = iter(whole.states)
    held_out = _Source(asked, Reading(list(islice(states, len(asked.rows))), whole.logits), source)
    reports = []
    for number, item in enumerate(examined):
        span = part(tick, 0.6 + 0.4 * number / count, 0.6 + 0.4 * (number + 1) / count)
        answered = Reading(list(islice(states, len(item.all_answers))), whole.logits)
        limits = limits_for(item.stored.spec, weights=source.model.weights, max_kl=max_kl)
        artifact = item.stored.artifact
        with watch.stage(f"compare {artifact.file}"):
            found = item.findings + held_out.findings + _by_walk(item, held_out, limits, span)
            found += _by_answers(item, asked, answered, limits, held_out.decode)
        verification = found.verified(item.sha256)
        reports.append(ArtifactReport(artifact, verification))
        manifest = manifest.with_verification(artifact.file, verification)
    manifest.write(folder)
    watch.keep(folder, "verify")
    return tuple(reports)


class _Source:
    """What the artifacts are held against, measured once for all of them."""

    def __init__(self, asked: Reference, reading: Reading, checkpoint: Checkpoint) -> None:
        """Look at the source's own turn ends and tags.

        Args:
            reading: of the held-out chats.

        Raises:
            Refusal: a tensor cannot be read.
        """
        self.asked, self.reading, self.decode = asked, reading, checkpoint.tokenizer.decode
        rows = list(zip(asked.rows, reading.states, strict=True))
        ends = turn_ends_of(rows, reading.logits, asked.ends, asked.contract.terminator_id)
        # A base model has not promised to end a text here; that an artifact ends it as readily is checked all the same.
        checks = (terminator.source_check(ends, asked.contract),) if asked.contract.is_chat else ()
        self.findings = Findings(checks, notes=asked.notes)
        self.tag_rows = TagRows(checkpoint, asked.contract.tags)


def _examine(stored: Stored, asked: Reference, source: Checkpoint, runtime: str | None, tick: Ticker) -> Examined:
    """What the artifact, and the runtime if there is one, says without a walk."""
    item = EXAMINE[stored.spec.format](stored, asked, part(tick, 0.0, 0.5) if runtime else tick)
    lost = stored_tensors.lost(stored.path, stored.spec, source.model)
    notes = [note for note in (legacy_note(stored.spec), foreign.unasked(runtime, stored.spec)) if note]
    if runtime and (reason := foreign.unread(runtime, stored.spec)):
        notes.append(f"{reason}; not asked")
    item = replace(item, findings=item.findings + lost + Findings(notes=tuple(notes)))
    if runtime is None or foreign.unread(runtime, stored.spec):
        return item
    seen = foreign.observe(runtime, stored.path, asked, source.tokenizer.decode, part(tick, 0.5, 1.0))
    return replace(item, findings=item.findings + seen.findings, foreign=seen)


def _walk(checkpoint: Checkpoint, rows: Sequence[Sequence[int]], what: str, tick: Ticker) -> Reading:
    tick(what, 0.0)
    return read_rows(checkpoint, rows, on_block=lambda done, blocks: tick(what, done / blocks))


def _by_walk(item: Examined, source: _Source, limits: Limits, tick: Ticker) -> Findings:
    """Source and artifact through the same walk, and the artifact's walk against what runtimes compute."""
    if item.checkpoint is None:
        return Findings()
    asked, rows = source.asked, item.checkpoint.model.rows
    if rows != asked.contract.rows:
        reason = f"the artifact has {rows} rows of vocabulary, the source {asked.contract.rows}"
        return Findings((Check("kl", False, "incomparable", limits.kl, reason),))
    try:
        found = source.tag_rows.compare(item.checkpoint, imatrix=item.stored.artifact.imatrix)
        artifact = _walk(item.checkpoint, asked.rows, f"comparing {item.stored.path.name}", tick)
    except HermetiqError as error:
        return Findings((Check("kl", False, "unreadable", limits.kl, told(error, item.stored.path)),))
    measured = _measured(source, artifact)
    found += judge.fidelity_findings(measured, limits)
    found += terminator.turn_end_findings(measured, asked, source.decode)
    if item.logprobs:
        found += judge.agreement_findings(item.logprobs, asked, artifact)
    if item.foreign:
        found += foreign.agreement(item.foreign, asked, artifact) + foreign.weights(item.foreign, item.checkpoint)
    return found


def _measured(source: _Source, artifact: Reading) -> Fidelity:
    asked = source.asked
    return compare(
        list(zip(asked.rows, source.reading.states, strict=True)),
        list(zip(asked.rows, artifact.states, strict=True)),
        source_logits=source.reading.logits,
        artifact_logits=artifact.logits,
        ends=asked.ends,
        terminator=asked.contract.terminator_id,
    )


def _by_answers(
    item: Examined,
    asked: Reference,
    source: Reading,  # of `item.all_answers`, in their order
    limits: Limits,
    decode: Callable[[Sequence[int]], str],
) -> Findings:
    """Does every answer, the artifact's own and the runtime's, end where the source would end it?"""
    found = Findings()
    own = len(item.answers or ())
    if item.answers:
        found += judge.smoke_findings(item.answers, asked, replace(source, states=source.states[:own]), limits, decode)
    if item.foreign:
        found += foreign.stops(item.foreign, asked, replace(source, states=source.states[own:]), limits, decode)
    return found
