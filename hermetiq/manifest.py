"""`hermetiq.json`: what an export is made of and what was proven about it.

Everything after the export (verification, reports, publishing) trusts this file and nothing else, so it is read with
suspicion: every value is checked against its type, and no path in it leaves the folder. Two exports of the same source
write the same bytes: keys are sorted, and no time of day or absolute path is in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

from hermetiq import __version__
from hermetiq.chat.contract import ChatContract
from hermetiq.checkpoint.base import Provenance
from hermetiq.errors import Finding, HermetiqError
from hermetiq.formats.output import write_files

FILE = "hermetiq.json"
VERSION = 2
LIBRARIES = ("gguf", "numpy", "safetensors", "tokenizers", "torch", "transformers", "xllamacpp")
"""Packages whose version can change an artifact or a measurement."""

T = TypeVar("T")


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


@dataclass(frozen=True)
class Solving:
    """Where a solver had to depart from its plain way (U11, U37)."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of steps by kind."""
    steps: tuple[str, ...] = ()
    """Each step with its layer, in the order they were taken."""


@dataclass(frozen=True)
class Artifact:
    """One exported artifact: a file (GGUF), or a folder with all that a runtime needs (GPTQ, AWQ)."""

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


@dataclass(frozen=True)
class Check:
    """One thing that was checked: `value` against `limit`, and in words the `reason` when it failed."""

    name: str
    passed: bool
    value: float | str
    limit: float | str
    reason: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found out about one artifact."""

    sha256: str
    """Of the bytes that were verified, as in `Artifact`."""
    checks: tuple[Check, ...]
    figures: Mapping[str, float]
    """Measurements by name; those that could not be taken are left out."""
    notes: tuple[str, ...] = ()
    """Differences that matter to somebody and fail nothing."""


@dataclass(frozen=True)
class Manifest:
    """The whole of `hermetiq.json`."""

    source: Source
    artifacts: tuple[Artifact, ...]
    calibration: Calibration | None = None
    """None where no artifact needed one."""
    verification: Mapping[str, Verification] = field(default_factory=dict)
    """By `Artifact.file`."""
    hermetiq: str = __version__
    libraries: Mapping[str, str] = field(default_factory=lambda: library_versions())
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """The document as JSON values."""
        return asdict(self)

    def with_verification(self, file: str, verification: Verification) -> Self:
        """The same manifest that also knows what was found about `file`."""
        return replace(self, verification={**self.verification, file: verification})

    def write(self, folder: Path) -> None:
        """Write `hermetiq.json` into `folder`, all of it or nothing.

        Raises:
            HermetiqError: the disk is full or the folder cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        write_files({folder / FILE: text.encode()})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the manifest of an export.

        Raises:
            HermetiqError: there is none, it is not JSON, not of this version, a value has another type than it must,
                or a file of it lies outside `folder`.
        """
        path = folder / FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except FileNotFoundError:
            raise HermetiqError(
                f"no {FILE}", where=str(folder), remedy="give the folder that `hermetiq export` wrote"
            ) from None
        except (ValueError, RecursionError) as error:
            raise _unreadable(path, f"not JSON ({error})") from None
        if not isinstance(document, dict) or document.get("version") != VERSION:
            raise _unreadable(path, f"not a manifest of version {VERSION}")
        try:
            manifest = _decode(cls, document, "")
        except _Mismatch as mismatch:
            raise _unreadable(path, str(mismatch)) from None
        for artifact in manifest.artifacts:
            _require_whole(artifact, path)
            manifest.path_of(artifact, folder)
            manifest.paths_of(artifact, folder)
        return manifest

    def path_of(self, artifact: Artifact, folder: Path) -> Path:
        """Where the artifact lies.

        Raises:
            HermetiqError: outside `folder`.
        """
        return _inside(folder, artifact.file)

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


class _Mismatch(Exception):
    """A value is not of the type that its place asks for."""


def _unreadable(path: Path, what: str) -> HermetiqError:
    return HermetiqError(what, where=str(path), remedy="export again; the file was damaged or edited")


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, if that lies in `folder` with all links followed."""
    relative = PurePosixPath(name)
    path = folder / relative
    if relative.is_absolute() or "\\" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise _unreadable(folder / FILE, f"artifacts: {name!r} lies outside the folder")
    return path


def _require_whole(artifact: Artifact, path: Path) -> None:
    """Refuse an artifact whose parts do not belong to it, or whose digest is of other parts."""
    folder = f"{artifact.file}/"
    strangers = [name for name in artifact.files if name != artifact.file and not name.startswith(folder)]
    if strangers or not artifact.files or combined_sha256(artifact.files) != artifact.sha256:
        what = f"{strangers[0]!r} is no file of it" if strangers else "sha256 is not that of its files"
        raise _unreadable(path, f"artifacts: {artifact.file!r}: {what}")


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _decode(kind: type[T], value: Any, place: str) -> T:
    """`value`, as JSON gave it, in the type `kind`: dataclasses, tuples, mappings, unions, literals and scalars."""
    decoded: Any
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        decoded = _decode_dataclass(kind, value, place)
    elif origin is tuple and isinstance(value, list):
        decoded = tuple(_decode(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    elif origin is Mapping and isinstance(value, dict):
        decoded = {key: _decode(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    elif origin in (Union, types.UnionType):
        decoded = _decode_union(arguments, value, place)
    elif origin is Literal and value in arguments:
        decoded = value
    elif kind is float and type(value) in (int, float) and math.isfinite(value):
        decoded = float(value)
    elif type(value) is kind:
        decoded = value
    else:
        raise _Mismatch(f"{place}: found {str(value)[:40]!r}, expected {getattr(kind, '__name__', kind)}")
    return typing.cast(T, decoded)


def _decode_dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(f"{place or FILE}: found {str(value)[:40]!r}, expected {kind.__name__}")
    types_by_name = typing.get_type_hints(kind)
    names = {item.name for item in fields(kind)}
    if names != value.keys():
        raise _Mismatch(f"{place or FILE}: keys missing or unknown: {', '.join(sorted(names ^ value.keys()))}")
    prefix = f"{place}." if place else ""
    return kind(**{name: _decode(types_by_name[name], value[name], prefix + name) for name in names})


def _decode_union(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    for kind in kinds:
        try:
            return _decode(kind, value, place)
        except _Mismatch:
            continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise _Mismatch(f"{place}: found {str(value)[:40]!r}, expected {names}")
