"""`hermetiq.json`: what an export is made of and what was proven about it.

Everything after the export (verification, reports, publishing) trusts this file and nothing else, so it is read with
suspicion: every value is checked against its type, and no path in it leaves the folder. Two exports of the same source
write the same bytes: keys are sorted, and no time of day or absolute path is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

from hermetiq import __version__, typed_json
from hermetiq.chat.contract import ChatContract
from hermetiq.checkpoint.base import Provenance
from hermetiq.errors import Finding, HermetiqError
from hermetiq.formats.output import write_files
from hermetiq.repair import Change
from hermetiq.verification import Verification

FILE = "hermetiq.json"
STAGES = "hermetiq-stages.json"
REPORT = "report.html"
EVALUATION = "hermetiq-eval.json"
BESIDE = (STAGES, REPORT, EVALUATION)
"""What lies beside an export, is no part of it, and goes when it goes."""
VERSION = 5
LIBRARIES = ("gguf", "numpy", "safetensors", "tokenizers", "torch", "transformers", "xllamacpp")
"""Packages whose version can change an artifact or a measurement."""
_REMEDY: Final = "export again; the file was damaged or edited"


@dataclass(frozen=True)
class Source:
    """The checkpoint that the artifacts were made from."""

    name: str
    """Last part of its path, or its Hub id."""
    fingerprint: str
    provenance: Provenance
    contract: ChatContract
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """The text that statistics were taken from, so that an export can be repeated."""

    corpus: str
    """Its name: `built-in`, a Hub id, or the last part of a path."""
    seed: int
    sha256: str
    """Of the token ids that were used."""
    rows_asked: int
    rows_used: int
    rows_dropped: int
    tokens: int
    template_share: float
    """Share of the tokens, 0 to 1, that the chat template put there."""
    sequential: bool = False
    """Each block saw what the quantized blocks before it put out."""
    serves: tuple[str, ...] = ()
    """The artifacts that were made from this one pass, by `Artifact.file`."""


@dataclass(frozen=True)
class Solving:
    """Where a solver had to depart from its plain way (U11, U37)."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of steps by kind."""
    steps: tuple[str, ...] = ()
    """Each step with its layer, in the order they were taken."""


@dataclass(frozen=True)
class Ending:
    """How readily answers end in the settling chats: mean log-probability of the terminator there, in nats."""

    ends: int
    """Answers over which it is taken."""
    source: float
    rounded: float
    """Of the artifact with the source's final norm."""
    settled: float
    """Of the artifact as it is."""


@dataclass(frozen=True)
class Artifact:
    """One exported artifact: a file (GGUF), or a folder with all that a runtime needs (GPTQ, AWQ, EXL2)."""

    spec: str
    file: str
    """The file or folder, relative to the manifest's folder, with forward slashes."""
    sha256: str
    """`combined_sha256` of `files`."""
    files: Mapping[str, str]
    """SHA-256 by path relative to the manifest's folder; the one entry of a single file is `file` itself."""
    bytes: int
    bpw: float
    """Bits per weight as written: tensor data only."""
    nominal_bpw: float
    """Bits per weight had every shape fitted the recipe."""
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    """Type taken instead of the recipe's, by tensor (U26)."""
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    """Type by tensor, in GGUF's names."""
    imatrix: bool = False
    """A GGUF whose blocks were chosen with an importance matrix."""
    solving: Solving = field(default_factory=Solving)
    widths: Mapping[str, str] = field(default_factory=dict)
    """The rung of the ladder that each linear layer got, by module (EXL2)."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Of each linear layer that a solver rounded, by module: energy of the output's error over that of the output."""
    expected_kl: float | None = None
    """Damage that the allocation of those rungs expects, nats per token (EXL2)."""
    ending: Ending | None = None
    """By which the final norm's gains were settled; None where they are the source's own: in a GGUF file that is not
    calibrated or rounds nothing, and where the source expects no end of the settling chats (a base model, an untrained
    one)."""


@dataclass(frozen=True)
class StoredFile:
    """A file of the export that belongs to no single artifact."""

    path: str
    """Relative to the manifest's folder, with forward slashes."""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole of `hermetiq.json`."""

    source: Source
    artifacts: tuple[Artifact, ...]
    calibration: Calibration | None = None
    """None where no artifact needed one."""
    measurement: StoredFile | None = None
    """What EXL2's widths were allocated from; other targets can be made of it."""
    verification: Mapping[str, Verification] = field(default_factory=dict)
    """By `Artifact.file`."""
    repairs: tuple[Change, ...] | None = None
    """What was repaired in the source on the way, which is not written to; None where no repair was asked for."""
    init_tags: str | None = None
    """Where those repairs took rows for untrained tags from: `mean`, `copy:TOKEN` or `parent`."""
    chat_template: str | None = None
    """Text of the template that those repairs put in; None where the source's own served."""
    hermetiq: str = __version__
    libraries: Mapping[str, str] = field(default_factory=lambda: library_versions())
    version: int = VERSION

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 by path of every file of the export but this one."""
        found = {name: digest for artifact in self.artifacts for name, digest in artifact.files.items()}
        return found if self.measurement is None else found | {self.measurement.path: self.measurement.sha256}

    def to_json(self) -> dict[str, Any]:
        """The document as JSON values."""
        return asdict(self)

    def verified(self, artifact: Artifact) -> Verification | None:
        """What was found out about the artifact as it is now; None where it was not, or other bytes were verified."""
        found = self.verification.get(artifact.file)
        return found if found and found.sha256 == artifact.sha256 else None

    def with_verification(self, file: str, verification: Verification) -> Self:
        """The same manifest that also knows what was found about `file`."""
        return replace(self, verification={**self.verification, file: verification})

    def write(self, folder: Path) -> None:
        """Write `hermetiq.json` into `folder`, all of it or nothing.

        Raises:
            HermetiqError: the disk is full or the folder cannot be written.
        """
        write_files({folder / FILE: typed_json.encode(self)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the manifest of an export.

        Raises:
            HermetiqError: there is none, it is not JSON, not of this version, a value has another type than it must,
                or a file of it lies outside `folder`.
        """
        path = folder / FILE
        if not path.exists():
            raise HermetiqError(f"no {FILE}", where=str(folder), remedy="give the folder that `hermetiq export` wrote")
        manifest = typed_json.read(path, cls, version=VERSION, remedy=_REMEDY)
        for artifact in manifest.artifacts:
            _require_whole(artifact, path)
            manifest.path_of(artifact, folder)
        manifest.paths(folder)
        return manifest

    def path_of(self, artifact: Artifact, folder: Path) -> Path:
        """Where the artifact lies.

        Raises:
            HermetiqError: outside `folder`.
        """
        return _inside(folder, artifact.file)

    def paths(self, folder: Path) -> dict[str, Path]:
        """Where each of `files` lies.

        Raises:
            HermetiqError: outside `folder`.
        """
        return {name: _inside(folder, name) for name in self.files}

    def paths_of(self, artifact: Artifact, folder: Path) -> dict[str, Path]:
        """Where each file of the artifact lies, by its name in `Artifact.files`.

        Raises:
            HermetiqError: outside `folder`.
        """
        return {name: _inside(folder, name) for name in artifact.files}


def combined_sha256(files: Mapping[str, str]) -> str:
    """One digest for SHA-256 by path: of a single file its own, of several that of their lines as `sha256sum` has them.

    The lines, `DIGEST  PATH`, are sorted by path; so the digest of a folder can be had without this program.
    """
    if len(files) == 1:
        return next(iter(files.values()))
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that an artifact depends on, of those installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, what: str) -> HermetiqError:
    return HermetiqError(what, where=str(path), remedy=_REMEDY)


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, if that lies in `folder` with all links followed."""
    relative = PurePosixPath(name)
    path = folder / relative
    odd = relative.is_absolute() or "\\" in name or "\0" in name
    if odd or folder.resolve() not in path.resolve().parents:
        raise _unreadable(folder / FILE, f"{name!r} lies outside the folder")
    return path


def _require_whole(artifact: Artifact, path: Path) -> None:
    """Refuse an artifact whose parts do not belong to it, or whose digest is of other parts."""
    folder = f"{artifact.file}/"
    strangers = [name for name in artifact.files if name != artifact.file and not name.startswith(folder)]
    if strangers or not artifact.files or combined_sha256(artifact.files) != artifact.sha256:
        what = f"{strangers[0]!r} is no file of it" if strangers else "sha256 is not that of its files"
        raise _unreadable(path, f"artifacts: {artifact.file!r}: {what}")
