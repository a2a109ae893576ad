"""From a checkpoint to artifacts, as a straight line: open, lint, plan, write, and the manifest of what was made."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hermetiq.chat.contract import ChatContract, special_ids
from hermetiq.chat.inspect import lint
from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import Finding, HermetiqError, Refusal
from hermetiq.formats.gguf import GgufHeader, GgufPlan, plan, write
from hermetiq.machine import cores
from hermetiq.manifest import FILE, Artifact, Manifest, Source
from hermetiq.model import TokenKind, Vocabulary
from hermetiq.progress import Ticker, silent
from hermetiq.quantize.spec import Spec
from hermetiq.rules import named

LONGEST_NAME = 200
"""Bytes of a base name: with recipe and endings it stays within what file systems allow."""
RESERVE = 300_000_000
"""Bytes that Python, torch and the tokenizer take before any weight is read."""
ABANDONED = (".gguf.partial", f"{FILE}.partial")
"""What a killed export leaves behind; the next one removes it."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan, in the words a person decides by."""

    spec: str
    name: str
    bytes: int
    bpw: float
    nominal_bpw: float
    fallback_share: float
    """Share of the weights that get another type than the recipe names, because of a tensor's shape (U26)."""
    types: Mapping[str, int]
    """Number of tensors by GGUF type."""


@dataclass(frozen=True)
class Plan:
    """What an export will write and need, known before any weight is read."""

    files: tuple[PlannedFile, ...]
    disk: int
    """Bytes of all files."""
    memory: int
    """Estimated peak of resident bytes: two tensors, as one is read ahead, over what the libraries take."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """A checkpoint that was admitted, and what is to be made of it."""

    source: Checkpoint
    contract: ChatContract
    findings: tuple[Finding, ...]
    """What the rules said and did not refuse."""
    gguf: Mapping[str, GgufPlan]
    """By path below the output folder."""
    specs: Mapping[str, Spec]
    """By the same path."""

    @property
    def plan(self) -> Plan:
        files = tuple(_planned(name, self.specs[name], file) for name, file in self.gguf.items())
        largest = max(tensor.weights for file in self.gguf.values() for tensor in file.tensors)
        width = 2 if all(info.dtype in ("BF16", "F16") for info in self.source.tensors.values()) else 4
        return Plan(files, sum(file.bytes for file in files), RESERVE + 2 * largest * width)


def prepare(
    path: str | Path,
    specs: Sequence[Spec],
    *,
    adapter: str | None = None,
    ignore: Sequence[str] = (),
    name: str | None = None,
) -> Job:
    """Open a checkpoint, hold it against the rules and plan every file; nothing is written.

    Args:
        path: folder, .gguf file or Hub id.
        specs: what to make, each once.
        adapter: LoRA folder, merged at load.
        ignore: rules whose errors become warnings of the manifest.
        name: base name of the files; by default the model's own.

    Raises:
        Refusal: the checkpoint breaks a rule.
        HermetiqError: unusable path, family or name.
    """
    source = open_checkpoint(path, adapter=adapter)
    # NaN is looked for while the tensors are read for writing: scanning them here would read everything twice.
    inspection = lint(source, ignore=("weight-nan",))
    findings = admit(inspection.findings, ignore)
    if inspection.contract is None:
        raise Refusal(*(finding for finding in inspection.findings if finding.severity == "error"))
    header = _header(source, inspection.contract)
    stem = _file_name(source.provenance.name if name is None else name)
    files = {f"gguf/{stem}-{spec.recipe}.gguf": spec for spec in dict.fromkeys(specs)}
    plans = {file: plan(header, spec.recipe) for file, spec in files.items()}
    return Job(source, inspection.contract, findings, plans, files)


def export(
    job: Job, folder: Path, *, overwrite: bool = False, threads: int | None = None, tick: Ticker = silent
) -> Manifest:
    """Write every planned file from one read of the source, then the manifest.

    Files get their names when all are complete; an interrupted export leaves none.

    Raises:
        HermetiqError: `folder` holds something else, or the disk is too small.
        Refusal: `weight-nan`, found on the way.
    """
    earlier = _make_room(folder, job, overwrite=overwrite)
    # Nothing slow may stand between the files and the manifest that makes them an export.
    source = _source(job)
    disk = job.plan.disk
    with _no_empty_folders(folder, folder / "gguf"):
        digests = write(
            {folder / name: file for name, file in job.gguf.items()},
            job.source,
            threads=threads or cores(),
            on_tensor=lambda tensor, done: tick(f"writing {tensor}", done / disk),
        )
    artifacts = (_artifact(name, job.specs[name], file, digests[folder / name]) for name, file in job.gguf.items())
    manifest = Manifest(source, tuple(artifacts))
    manifest.write(folder)
    for path in earlier - _files(manifest, folder):
        path.unlink()
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


def _header(source: Checkpoint, contract: ChatContract) -> GgufHeader:
    return GgufHeader(
        model=source.model,
        vocabulary=_tagged(source.tokenizer.vocabulary, contract),
        ids=special_ids(contract),
        template=contract.template,
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


def _planned(name: str, spec: Spec, file: GgufPlan) -> PlannedFile:
    types = Counter(tensor.choice.type.name for tensor in file.tensors)
    return PlannedFile(
        spec=str(spec),
        name=name,
        bytes=file.size,
        bpw=file.bits_per_weight,
        nominal_bpw=file.nominal_bits_per_weight,
        fallback_share=file.fallback_share,
        types=dict(sorted(types.items())),
    )


def _source(job: Job) -> Source:
    return Source(
        name=job.source.provenance.name,
        fingerprint=job.source.fingerprint(),
        provenance=job.source.provenance,
        contract=job.contract,
        findings=job.findings,
    )


def _artifact(name: str, spec: Spec, file: GgufPlan, sha256: str) -> Artifact:
    return Artifact(
        spec=str(spec),
        file=name,
        sha256=sha256,
        files={name: sha256},
        bytes=file.size,
        bpw=file.bits_per_weight,
        nominal_bpw=file.nominal_bits_per_weight,
        fallbacks={tensor.name: tensor.choice.type.name for tensor in file.tensors if tensor.choice.fell_back},
        tensor_types={tensor.name: tensor.choice.type.name for tensor in file.tensors},
    )


def _make_room(folder: Path, job: Job, *, overwrite: bool) -> set[Path]:
    """Hold `folder` against the plan: empty, or an earlier export that may go; and a disk that is large enough.

    Returns the files of that earlier export: they stay until the new ones are complete.
    """
    # The lowest part of the path that exists; a link that leads nowhere is no place, either.
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise HermetiqError("not a folder", where=str(existing), remedy="choose another OUT")
    if job.source.path.resolve().is_relative_to(folder.resolve()):
        raise HermetiqError("the source lies in it", where=str(folder), remedy="choose another OUT")
    # Whatever is no real folder counts, so that nothing is ever written through a link.
    found = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    abandoned = {path for path in found if path.name.endswith(ABANDONED)}
    finished = sorted(found - abandoned)
    if finished and not overwrite:
        raise HermetiqError(
            f"the folder is not empty ({finished[0].relative_to(folder)})",
            where=str(folder),
            remedy="choose an empty OUT, or --overwrite to replace an earlier export",
        )
    earlier = _earlier(folder) if finished else set()
    if foreign := [path for path in finished if path not in earlier and path != folder / FILE]:
        raise HermetiqError(
            f"{foreign[0].relative_to(folder)} was not made by hermetiq", where=str(folder), remedy="choose another OUT"
        )
    for path in abandoned:
        path.unlink()
    free = shutil.disk_usage(existing).free
    if free < job.plan.disk:
        raise HermetiqError(
            f"the export takes {job.plan.disk} bytes, {free} are free", where=str(folder), remedy="free disk space"
        )
    return earlier


@contextmanager
def _no_empty_folders(*folders: Path) -> Iterator[None]:
    """Where the work inside fails, those of `folders` that it made go again; inner ones come last."""
    made = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def _earlier(folder: Path) -> set[Path]:
    """The files of the export that `folder` holds, by its manifest; none without one."""
    if not (folder / FILE).exists():
        return set()
    try:
        manifest = Manifest.read(folder)
    except HermetiqError as error:
        raise HermetiqError(error.what, where=error.where, remedy="choose another OUT, or delete this one") from error
    return _files(manifest, folder)


def _files(manifest: Manifest, folder: Path) -> set[Path]:
    return {path for artifact in manifest.artifacts for path in manifest.paths_of(artifact, folder).values()}
