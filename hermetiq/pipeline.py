"""From a checkpoint to artifacts, as a straight line: open, lint, plan, calibrate, write, and the manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hermetiq import harvest, tracks
from hermetiq.chat.calibration import calibration_rows
from hermetiq.chat.contract import ChatContract, special_ids
from hermetiq.chat.inspect import lint
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.companions import companions
from hermetiq.errors import Finding, HermetiqError, Refusal
from hermetiq.formats import exl2_plan as mixed
from hermetiq.formats import linear_plan as linear
from hermetiq.formats.exl2_plan import MixedPlan
from hermetiq.formats.gguf import GgufHeader, GgufPlan, plan, write
from hermetiq.formats.gguf.names import gguf_names
from hermetiq.formats.legacy import legacy_finding
from hermetiq.formats.linear_plan import LinearPlan
from hermetiq.formats.output import write_files
from hermetiq.formats.shards import write_shards
from hermetiq.journal import Journal
from hermetiq.machine import cores
from hermetiq.manifest import Artifact, Calibration, Manifest, Source, combined_sha256
from hermetiq.measurement import Measurement
from hermetiq.model import FINAL_NORM, TokenKind, Vocabulary
from hermetiq.place import JOURNAL, clear, files_of, finished, make_room, no_empty_folders
from hermetiq.plan import Job
from hermetiq.progress import Ticker, part, shares, silent
from hermetiq.quantize.ggml import Float32
from hermetiq.quantize.spec import Spec
from hermetiq.repair import InitTags, mend
from hermetiq.rules import named
from hermetiq.settle import Settlement, Settler
from hermetiq.stages import Stopwatch
from hermetiq.tracks import Tracks

LONGEST_NAME = 200
"""Bytes of a base name: with recipe and endings it stays within what file systems allow."""


def prepare(
    path: str | Path,
    specs: Sequence[Spec],
    *,
    adapter: str | None = None,
    ignore: Sequence[str] = (),
    name: str | None = None,
    calibration: str | Path | None = None,
    rows: int = 128,
    row_tokens: int = 512,
    seed: int = 0,
    sequential: bool = False,
    imatrix: bool | None = None,
    measurement: Path | None = None,
    base_model: bool = False,
    repair: bool = False,
    init_tags: InitTags | None = None,
    chat_template: str | None = None,
) -> Job:
    """Open a checkpoint, hold it against the rules, plan every artifact and draw the calibration rows.

    Nothing is written, and no weight is read.

    Args:
        path: folder, .gguf file or Hub id.
        specs: what to make, each once.
        adapter: LoRA folder, merged at load.
        ignore: rules whose errors become warnings of the manifest.
        name: base name of the files; by default the model's own.
        calibration: corpus, as `calibration.corpus.read_documents` takes it; the built-in one where None.
        rows: rows of token ids to calibrate on, each of `row_tokens` at most.
        seed: draws the rows.
        sequential: calibrate each block on what the quantized blocks before it put out; for one spec alone.
        imatrix: whether GGUF files get an importance matrix; where None, if something else is calibrated anyway.
        measurement: `measurement.json` of an earlier export of the source, to choose EXL2's widths by.
        base_model: the model has no chat template, and that is right.
        repair: repair the checkpoint in memory first, as `hermetiq repair` would; the one on disk stays as it is.
        init_tags: where a repair takes rows for untrained tags from.
        chat_template: text of the template that a repair puts in; the model's own where None.

    Raises:
        Refusal: the checkpoint breaks a rule, or a layer does not fit a recipe.
        HermetiqError: unusable path, family, name, corpus or measurement, or a `base_model` that has a template.
    """
    specs = tuple(dict.fromkeys(specs))
    if init_tags and not repair:
        raise HermetiqError("rows are given to tags by a repair alone", where="--init-tags", remedy="add --repair")
    if chat_template is not None and not repair:
        raise HermetiqError("a template is put in by a repair alone", where="--chat-template", remedy="add --repair")
    mended = None
    if repair:
        mended = mend(
            str(path), adapter=adapter, init_tags=init_tags, chat_template=chat_template, base_model=base_model
        )
    source = mended.checkpoint if mended else open_checkpoint(path, adapter=adapter)
    # Values are looked at while the tensors are read for the work: scanning them here would read everything twice.
    inspection = lint(source, ignore=("weight-nan", "f16-overflow"), base_model=base_model)
    legacy = {spec.format: found for spec in specs if (found := legacy_finding(spec))}
    findings = admit((*inspection.findings, *legacy.values()), ignore)
    contract = inspection.contract
    if contract is None:
        raise Refusal(*(finding for finding in inspection.findings if finding.severity == "error"))
    header = _header(source, contract)
    stem = _file_name(source.provenance.name if name is None else name)
    paths = {_path(spec, stem): spec for spec in specs}
    grids = {path: linear.plan(source.model, spec) for path, spec in paths.items() if spec.format in ("gptq", "awq")}
    mixes = {path: mixed.plan(source.model, spec) for path, spec in paths.items() if spec.format == "exl2"}
    calibrated = len(grids) + len(mixes)
    importance = calibrated < len(paths) and (calibrated > 0 if imatrix is None else imatrix)
    gguf = {
        path: plan(header, spec.recipe, imatrix=importance) for path, spec in paths.items() if spec.format == "gguf"
    }
    if sequential and (len(grids) != 1 or mixes):
        raise HermetiqError(
            "sequential calibration follows one GPTQ or AWQ artifact, and what is asked for is "
            + ", ".join(str(spec) for spec in specs),
            remedy="export it by itself, or leave out --sequential",
        )
    drawn = None
    if calibrated or importance:
        drawn = calibration_rows(source, contract, source=calibration, rows=rows, row_tokens=row_tokens, seed=seed)
        findings += drawn.report.findings
    known = _known(measurement, mixes)
    job = Job(
        source=source,
        contract=contract,
        findings=findings,
        specs=paths,
        gguf=gguf,
        linear=grids,
        mixed=mixes,
        measurement=known,
        rows=drawn,
        importance=importance,
        seed=seed,
        sequential=sequential,
        repairs=mended.changes if mended else None,
        init_tags=init_tags.told if init_tags else None,
        chat_template=chat_template,
    )
    if known:
        known.require(source=job.fingerprint, shapes=linear.linears(source.model))
    return job


def export(
    job: Job,
    folder: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    tick: Ticker = silent,
) -> Manifest:
    """Calibrate once, write every planned artifact, then the manifest.

    Artifacts get their names when they are complete. What calibration has made of each block survives in a journal
    inside `folder`: with `resume` an export that was killed goes on behind its last block, to the same bytes.

    Raises:
        HermetiqError: `folder` holds something else, the disk is too small, or an unfinished export is in the way.
        Refusal: `weight-nan`, `f16-overflow` or `hessian-nan`, found on the way.
    """
    if resume and (done := finished(folder, job)):
        return done
    earlier = make_room(folder, job, overwrite=overwrite, resume=resume)
    # Nothing slow may stand between the files and the manifest that makes them an export.
    source, watch = _source(job), Stopwatch()
    walked, read, settled = (0.7, 0.75, 0.85) if job.rows else (0.0, 0.0, 0.0)
    with no_empty_folders(folder, folder / "gguf"):
        with watch.stage("calibrate and quantize"):
            journal, known = _calibrated(job, folder, torch.device(device), resume=resume, tick=part(tick, 0.0, walked))
        with watch.stage("settle the terminator"):
            settler = Settler.of(job, torch.device(device), part(tick, walked, read))
            gains = settler.folders(journal, known.folders, part(tick, read, settled)) if settler and journal else {}
        with watch.stage("write folders"):
            made = _write_folders(job, folder, journal, known, gains)
        with watch.stage("quantize and write GGUF files"):
            made |= _write_gguf(job, folder, journal, settler, threads, part(tick, settled, 1.0))
        measured = known.measurement.write(folder) if known.measurement else None
    if journal:
        source = replace(source, findings=(*source.findings, *harvest.findings(journal, known)))
    artifacts = tuple(made[path] for path in job.specs)
    manifest = Manifest(
        source,
        artifacts,
        _calibration(job),
        measured,
        repairs=job.repairs,
        init_tags=job.init_tags,
        chat_template=job.chat_template,
    )
    # Before the manifest: whatever it does not name would be a stranger to the next export.
    clear(earlier - files_of(manifest, folder), folder)
    watch.keep(folder, "export")
    manifest.write(folder)
    if journal:
        journal.remove()
    return manifest


def admit(findings: Sequence[Finding], ignore: Sequence[str]) -> tuple[Finding, ...]:
    """The findings an export goes on with: errors that the user ignores stay on record as warnings.

    Raises:
        Refusal: errors that were not ignored.
        HermetiqError: `ignore` names no rule.
    """
    ignored = {named(rule).name for rule in ignore}
    errors = [finding for finding in findings if finding.severity == "error" and finding.rule not in ignored]
    if errors:
        raise Refusal(*errors)
    return tuple(replace(item, severity="warning") if item.severity == "error" else item for item in findings)


def _known(path: Path | None, mixes: Mapping[str, MixedPlan]) -> Measurement | None:
    """An earlier measurement; whose it is, is still to be seen."""
    if path is None:
        return None
    if not mixes:
        raise HermetiqError("a measurement serves EXL2 alone, and none is asked for", remedy="add --to exl2:4.65bpw")
    return Measurement.read(path)


def _calibrated(
    job: Job, folder: Path, device: torch.device, *, resume: bool, tick: Ticker
) -> tuple[Journal | None, Tracks]:
    """The journal of a finished walk and what it is read by; nothing where nothing is calibrated."""
    if job.rows is None:
        return None, Tracks()
    journal = Journal.open(folder / JOURNAL, tracks.identity(job, device), resume=resume)
    for line in journal.distrusted:
        tick(f"made again: {line}", 0.0)
    return journal, tracks.calibrate(job, journal, device, tick)


def _write_folders(
    job: Job, folder: Path, journal: Journal | None, known: Tracks, settled: Mapping[str, Settlement]
) -> dict[str, Artifact]:
    """GPTQ, AWQ and EXL2 folders, by path."""
    artifacts = {}
    for path, track in known.folders.items():
        assert journal
        norm = {FINAL_NORM: settled[path].gains} if path in settled else {}
        load = harvest.stored(job.source, track.plan, journal, path, norm)
        digests = write_shards(folder / path, track.plan.tensors, load, stem=track.plan.stem)
        files = companions(job.source, job.contract, harvest.quantization(job, track.plan))
        digests |= write_files({folder / path / name: content for name, content in files.items()})
        artifact = _folder_artifact(path, track.plan, folder, digests, journal)
        artifact = replace(artifact, ending=settled[path].ending if path in settled else None)
        if track.rungs and known.measurement:
            widths = {module: str(rung) for module, rung in track.rungs.items()}
            artifact = replace(artifact, widths=widths, expected_kl=known.measurement.expected_kl(track.rungs))
        artifacts[path] = artifact
    return artifacts


def _write_gguf(
    job: Job, folder: Path, journal: Journal | None, settler: Settler | None, threads: int | None, tick: Ticker
) -> dict[str, Artifact]:
    """All GGUF files from one read of the source, by path."""
    if not job.gguf:
        return {}
    total = sum(file.size for file in job.gguf.values())
    weights: Mapping[str, Tensor] = {}
    if job.importance and journal:
        weights = harvest.importance(journal, tied=job.source.model.tied)
    writing, settling = shares(tick, 2) if settler else (tick, silent)
    steps = dict(zip(job.gguf, shares(settling, len(job.gguf)), strict=True))
    paths = {folder / path: path for path in job.gguf}
    settled: dict[str, Settlement] = {}

    def settle(file: Path, complete: Path) -> Mapping[str, Float32]:
        path = paths[file]
        if settler is None or path not in job.settles:
            return {}
        settled[path] = settler.file(complete, steps[path])
        return {gguf_names(job.source.model)[FINAL_NORM]: settled[path].gains.numpy()}

    digests = write(
        {file: job.gguf[path] for file, path in paths.items()},
        job.source,
        threads=threads or cores(),
        imatrix={name: tensor.cpu().numpy() for name, tensor in weights.items()},
        on_tensor=lambda tensor, done: writing(f"writing {tensor}", done / total),
        revise=settle,
    )
    made = {
        path: _file_artifact(path, job.specs[path], job.gguf[path], digests[file], imatrix=job.importance)
        for file, path in paths.items()
    }
    return made | {path: replace(made[path], ending=settlement.ending) for path, settlement in settled.items()}


def _path(spec: Spec, stem: str) -> str:
    """Where an artifact lies below the output folder."""
    return f"gguf/{stem}-{spec.recipe}.gguf" if spec.format == "gguf" else f"{spec.format}-{spec.recipe}"


def _header(source: Checkpoint, contract: ChatContract) -> GgufHeader:
    return GgufHeader(
        model=source.model,
        vocabulary=_tagged(source.tokenizer.vocabulary, contract),
        ids=special_ids(contract),
        template=contract.template if contract.is_chat else None,
        name=source.provenance.name,
        license=source.provenance.license,
        base_models=source.provenance.base_models,
    )


def _tagged(vocabulary: Vocabulary, contract: ChatContract) -> Vocabulary:
    """The template's tags typed CONTROL however the source types them, or llama.cpp would print them as text (U07)."""
    tokens = list(vocabulary.tokens)
    for tag in contract.tags:
        if tokens[tag.id].kind in (TokenKind.NORMAL, TokenKind.USER_DEFINED):
            tokens[tag.id] = replace(tokens[tag.id], kind=TokenKind.CONTROL)
    return replace(vocabulary, tokens=tuple(tokens))


def _file_name(name: str) -> str:
    plain = name.isprintable() and not set(name) & {"/", "\\"} and not name.startswith((".", "-"))
    if not name or not plain or len(os.fsencode(name)) > LONGEST_NAME:
        raise HermetiqError(f"{name!r} cannot name a file", remedy="give a plain --name")
    return name


def _source(job: Job) -> Source:
    return Source(
        name=job.source.provenance.name,
        fingerprint=job.fingerprint,
        provenance=job.source.provenance,
        contract=job.contract,
        findings=job.findings,
    )


def _calibration(job: Job) -> Calibration | None:
    if job.rows is None:
        return None
    report = job.rows.report
    return Calibration(
        # The folder it lies in is nobody's business, and differs from machine to machine.
        corpus=Path(report.source).name,
        seed=job.seed,
        sha256=job.rows.sha256,
        rows_asked=report.rows_asked,
        rows_used=report.rows_used,
        rows_dropped=report.rows_dropped,
        tokens=report.tokens,
        template_share=report.tag_share,
        sequential=job.sequential,
        serves=tuple(path for path in job.specs if path in job.folders or job.importance),
    )


def _folder_artifact(
    path: str, planned: LinearPlan, folder: Path, digests: Mapping[Path, str], journal: Journal
) -> Artifact:
    files = {file.relative_to(folder).as_posix(): digest for file, digest in digests.items()}
    return Artifact(
        spec=str(planned.spec),
        file=path,
        sha256=combined_sha256(files),
        files=files,
        bytes=sum(file.stat().st_size for file in digests),
        bpw=planned.bits_per_weight,
        nominal_bpw=planned.nominal_bits_per_weight,
        solving=harvest.solving(journal, path),
        errors=harvest.errors(journal, path),
    )


def _file_artifact(path: str, spec: Spec, file: GgufPlan, sha256: str, *, imatrix: bool) -> Artifact:
    return Artifact(
        spec=str(spec),
        file=path,
        sha256=sha256,
        files={path: sha256},
        bytes=file.size,
        bpw=file.bits_per_weight,
        nominal_bpw=file.nominal_bits_per_weight,
        fallbacks={tensor.name: tensor.choice.type.name for tensor in file.tensors if tensor.choice.fell_back},
        tensor_types={tensor.name: tensor.choice.type.name for tensor in file.tensors},
        imatrix=imatrix,
    )
