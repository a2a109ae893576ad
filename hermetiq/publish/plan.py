"""What goes where: the repos, branches and files of a release, worked out before anything is sent.

A release is planned from the manifest alone, so nothing can be published that the export did not list, and the whole
plan can be shown (`--dry-run`) and held against the Hub at the end. Nothing here reads a file or asks the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final

from hermetiq.checkpoint.hub import is_hub_id
from hermetiq.errors import HermetiqError
from hermetiq.manifest import FILE as MANIFEST
from hermetiq.manifest import Artifact, Manifest
from hermetiq.quantize.spec import parse

MAIN: Final = "main"
CARD: Final = "README.md"
CONTENTS: Final = "hermetiq-files.json"
"""On every branch: what hermetiq put there, by which it knows its own repos again."""
LIMIT: Final = 48_000_000_000
"""Bytes of a file: the Hub refuses one above 50 GB (U58)."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,199}", re.ASCII)
LICENCE_FILE: Final = re.compile(
    r"(?:licen[cs]e|notice|copying|use_policy)(?:[-_]\w+)?(?:\.(?:txt|md|rst))?", re.ASCII | re.IGNORECASE
)
"""Names of the files that say under which terms a model comes."""
_FORMATS: Final = ("gguf", "gptq", "awq", "exl2")
"""In the order in which a release lists them."""


class Layout(StrEnum):
    """How a release is spread over repos."""

    per_format = "per-format"
    """One repo for each format: NAME-GGUF, NAME-GPTQ, NAME-AWQ, NAME-EXL2."""
    single = "single"
    """One repo: GGUF files on main, a branch for each folder."""


@dataclass(frozen=True)
class Part:
    """One file of a GGUF that is split."""

    name: str
    bytes: int


@dataclass(frozen=True)
class PlannedFile:
    """One file of a branch."""

    path: str
    """In the repo."""
    bytes: int
    """0 where it is written on the way (card, list of files)."""
    sha256: str = ""
    """Empty until the file is made."""
    origin: str = ""
    """Relative to the folder of the export; of a part, the file that it is a part of."""


@dataclass(frozen=True)
class Branch:
    """One branch as it will be."""

    name: str
    files: tuple[PlannedFile, ...]
    artifacts: tuple[str, ...] = ()
    """`Artifact.file` of those that lie here."""


@dataclass(frozen=True)
class Repo:
    """One repo: `main`, which is committed last and announces the others, and its further branches."""

    id: str
    formats: tuple[str, ...]
    branches: tuple[Branch, ...]
    """`main` first."""

    @property
    def main(self) -> Branch:
        return self.branches[0]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for branch in self.branches for file in branch.files)


@dataclass(frozen=True)
class Plan:
    """A whole release."""

    layout: str
    repos: tuple[Repo, ...]

    @property
    def bytes(self) -> int:
        return sum(repo.bytes for repo in self.repos)

    def to_json(self) -> dict[str, Any]:
        """Stable, for scripts."""
        return {**asdict(self), "bytes": self.bytes}


def plan(
    manifest: Manifest,
    repo: str,
    *,
    layout: Layout,
    sizes: Mapping[str, int],
    parts: Mapping[str, tuple[Part, ...]],
) -> Plan:
    """Spread the artifacts of an export over repos and branches.

    Args:
        repo: `ORG/NAME`; each format's ending is added to it where every format has its own.
        sizes: bytes of every file of the manifest, by its name there.
        parts: how the GGUF files are split that are too large, by their name in the manifest.

    Raises:
        HermetiqError: no Hub id, a name that no repo may hold, two files of one name, or nothing to publish.
    """
    if not is_hub_id(repo) or "--" in repo or ".." in repo:
        raise HermetiqError("not a valid Hub id", where=repo, remedy="give ORG/NAME")
    by_format: dict[str, list[Artifact]] = {name: [] for name in _FORMATS}
    for artifact in manifest.artifacts:
        by_format[parse(artifact.spec).format].append(artifact)
    made = {name: tuple(artifacts) for name, artifacts in by_format.items() if artifacts}
    if not made:
        raise HermetiqError("the export holds no artifact", remedy="export something first")
    contents = _Contents(manifest, sizes, parts)
    if layout is Layout.single:
        repos = [_single(repo, made, contents)]
    else:
        repos = [_of_format(_named(repo, name, alone=len(made) == 1), name, made[name], contents) for name in made]
    for each in repos:
        _require_sound(each)
    return Plan(layout.value, tuple(repos))


def repo_path(artifact: Artifact, name: str) -> str:
    """Where a file of an artifact lies on its branch: folders at the root, as every loader wants them."""
    return PurePosixPath(name).name if name == artifact.file else name.removeprefix(f"{artifact.file}/")


def branches_of(artifact: Artifact) -> tuple[str, ...]:
    """Where an artifact may lie in a repo, whatever the layout: on `main`, or on a branch of its own."""
    return (MAIN, artifact.file, parse(artifact.spec).recipe)


def is_sound(path: str) -> bool:
    """Whether a release could have put a file there."""
    return all(map(_is_name, path.split("/")))


@dataclass(frozen=True)
class _Contents:
    """What is known of the files that a plan speaks of."""

    manifest: Manifest
    sizes: Mapping[str, int]
    parts: Mapping[str, tuple[Part, ...]]

    def of(self, artifact: Artifact) -> Iterator[PlannedFile]:
        """The files of an artifact as they lie in a repo."""
        for name, digest in sorted(artifact.files.items()):
            if split := self.parts.get(name):
                folder = PurePosixPath(name).stem
                yield from (PlannedFile(f"{folder}/{part.name}", part.bytes, origin=name) for part in split)
            else:
                yield PlannedFile(repo_path(artifact, name), self.sizes[name], digest, name)

    def _terms(self) -> Iterator[PlannedFile]:
        """The licence and what belongs to it, of the first artifact that has them: a GGUF has no place for them."""
        for artifact in self.manifest.artifacts:
            found = [file for file in self.of(artifact) if LICENCE_FILE.fullmatch(file.path)]
            if found:
                yield from found
                return

    def branch(self, name: str, artifacts: tuple[Artifact, ...], *, measured: bool = False) -> Branch:
        files = [file for artifact in artifacts for file in self.of(artifact)]
        if measured and (stored := self.manifest.measurement):
            files.append(PlannedFile(stored.path, self.sizes[stored.path], stored.sha256, stored.path))
        if name == MAIN:
            known = {file.path for file in files}
            files += [file for file in self._terms() if file.path not in known]
            files += [PlannedFile(CARD, 0), PlannedFile(MANIFEST, 0)]
        files.append(PlannedFile(CONTENTS, 0))
        return Branch(name, tuple(files), tuple(artifact.file for artifact in artifacts))


def _single(repo: str, made: Mapping[str, tuple[Artifact, ...]], contents: _Contents) -> Repo:
    folders = [artifact for name, artifacts in made.items() if name != "gguf" for artifact in artifacts]
    main = contents.branch(MAIN, made.get("gguf", ()), measured=True)
    return Repo(repo, tuple(made), (main, *(contents.branch(each.file, (each,)) for each in folders)))


def _of_format(repo: str, format: str, artifacts: tuple[Artifact, ...], contents: _Contents) -> Repo:
    branches: tuple[Branch, ...]
    if format == "gguf":
        branches = (contents.branch(MAIN, artifacts),)
    elif format == "exl2":
        rest = (contents.branch(parse(artifact.spec).recipe, (artifact,)) for artifact in artifacts)
        branches = (contents.branch(MAIN, (), measured=True), *rest)
    else:
        first, *others = artifacts
        branches = (contents.branch(MAIN, (first,)), *(contents.branch(each.file, (each,)) for each in others))
    return Repo(repo, (format,), branches)


def _named(repo: str, format: str, *, alone: bool) -> str:
    """The repo of a format; a name that already ends as the only format's does stays as it is."""
    ending = f"-{format.upper()}"
    return repo if alone and repo.upper().endswith(ending) else repo + ending


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and ".." not in text


def _require_sound(repo: Repo) -> None:
    """Refuse what a branch or the Hub could not hold."""
    for branch in repo.branches:
        seen: set[str] = set()
        for name in (branch.name, *(part for file in branch.files for part in file.path.split("/"))):
            if not _is_name(name):
                raise HermetiqError(
                    f"{name!r} cannot be a name in a repo", where=repo.id, remedy="export again with a plain --name"
                )
        for file in branch.files:
            if file.path.lower() in seen:
                raise HermetiqError(f"two files would be {file.path}", where=f"{repo.id}@{branch.name}")
            seen.add(file.path.lower())
            if file.bytes > LIMIT:
                raise HermetiqError(
                    f"{file.path} has {file.bytes} bytes, the Hub takes {LIMIT}", where=repo.id,
                    remedy="export it in smaller shards",
                )  # fmt: skip
