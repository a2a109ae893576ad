"""A published release brought back to be verified: what hermetiq's own lists name, of the artifacts asked for alone.

The lists on the branches say which file of which artifact lies where, so a few small files decide what is downloaded:
no card, no other branch, and nothing that was changed since it was published. Everything comes from the one commit of a
branch that was seen first, into the cache of `huggingface_hub`, and is linked from there into a folder that is laid out
as the export was. Nothing is written to the Hub.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

from huggingface_hub import constants

from hermetiq.checkpoint.hub import is_hub_id
from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.manifest import FILE as MANIFEST
from hermetiq.manifest import Artifact, Manifest
from hermetiq.progress import Ticker, silent

from .contents import Contents
from .hub import Hub, RemoteFile
from .plan import MAIN, branches_of, is_sound, repo_path
from .split import join
from .standing import is_text, is_untouched, listed_at

TRIES: Final = 4
"""Requests until the Hub is given up: what is looked at may be a folder's name with a slip in it."""
_REMEDY: Final = "give the folder of an export, or a repo that `hermetiq publish` made"
_AGAIN: Final = "publish the release again, or ask its owner to"


@dataclass(frozen=True)
class Held:
    """One artifact where it lies on the Hub."""

    artifact: Artifact
    commit: str
    files: Mapping[str, tuple[str, ...]]
    """Paths on the branch by name in the manifest: one, or the parts of a split GGUF in their order."""
    sizes: Mapping[str, int]
    """Bytes by path on the branch."""


@dataclass(frozen=True)
class Found:
    """What a repo holds of what was asked for."""

    repo: str
    manifest: Manifest
    """Of the artifacts in `held` alone."""
    held: tuple[Held, ...]
    elsewhere: tuple[str, ...]
    """Artifacts of the release that lie in other repos, by `Artifact.file`."""
    others: tuple[str, ...]
    """Specs of all artifacts of the release that are not in `held`."""

    @property
    def base_model(self) -> str:
        """Hub id of the model that was quantized.

        Raises:
            HermetiqError: the release does not say.
        """
        name = self.manifest.source.name
        if not is_hub_id(name):
            what = f"{name!r} does not say which model on the Hub was quantized"
            raise HermetiqError(what, where=self.repo, remedy="give --source with the checkpoint that it was made from")
        return name


@dataclass(frozen=True)
class _Branch:
    """A branch that has a list of ours."""

    place: str
    """`REPO@BRANCH`."""
    commit: str
    tree: Mapping[str, RemoteFile]
    contents: Contents


@contextmanager
def workplace(repo: str) -> Iterator[Path]:
    """A folder to lay a release out in, which is gone when the block is left.

    It lies beside the repo's files in the library's cache, because hard links cannot leave a disk.

    Raises:
        HermetiqError: the library is told not to ask the Hub.
    """
    if constants.HF_HUB_OFFLINE:
        what = "no such folder here, and HF_HUB_OFFLINE keeps the Hub from being asked"
        raise HermetiqError(what, where=repo, remedy="unset HF_HUB_OFFLINE, or give the folder of an export")
    beside = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    beside.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="verify-", dir=beside) as folder:
            yield Path(folder)
    finally:
        # Nothing was downloaded, perhaps since there is no such repo: the library would take it for a damaged one.
        with suppress(OSError):
            beside.rmdir()


def find(hub: Hub, repo: str, folder: Path, names: Sequence[str] = ()) -> Found:
    """Read what hermetiq wrote about a release, and write the manifest of what is wanted of it into `folder`.

    Args:
        repo: `ORG/NAME`.
        names: of the artifacts that are wanted, by spec, file or last part of the file; without, all in the repo.

    Raises:
        HermetiqError: no such repo, none of ours, its lists make no sense, or `names` has one that is not in it.
        CheckFailed: a file that is needed is not as it was published.
    """
    heads = hub.heads(repo)
    if heads is None:
        what = "no such folder here, and no such repo on the Hub"
        raise HermetiqError(what, where=repo, remedy=f"{_REMEDY}; for a private one run `hf auth login`")

    @cache
    def branch(name: str) -> _Branch | None:
        return _branch(hub, repo, name, heads)

    main = branch(MAIN)
    if main is None:
        raise HermetiqError("hermetiq did not publish this repo", where=repo, remedy=_REMEDY)
    manifest = _manifest(hub, repo, main, folder)
    held, elsewhere = [], []
    for artifact in _chosen(repo, manifest, names):
        places = (_held(artifact, branch(name)) for name in branches_of(artifact))
        if found := next(filter(None, places), None):
            held.append(found)
        else:
            elsewhere.append(artifact.file)
    if not held or (names and elsewhere):
        what = f"{', '.join(elsewhere) or 'an artifact'} is not in this repo"
        raise HermetiqError(what, where=repo, remedy="give the repo of its format, to which the card links")
    wanted = tuple(item.artifact for item in held)
    verified = {item.file: manifest.verification[item.file] for item in wanted if item.file in manifest.verification}
    narrowed = replace(manifest, artifacts=wanted, verification=verified, measurement=None)
    narrowed.write(folder)
    others = tuple(item.spec for item in manifest.artifacts if item not in wanted)
    return Found(repo, narrowed, tuple(held), tuple(elsewhere), others)


def lay_out(hub: Hub, found: Found, folder: Path, tick: Ticker = silent) -> None:
    """Download what was found, and put it into `folder` under the names of the manifest there; split files are joined.

    Raises:
        HermetiqError: the Hub or the connection failed for good, the disk is full, or takes no hard links.
        Refusal: a part of a split GGUF is none.
    """
    total, done = sum(size for item in found.held for size in item.sizes.values()), 0
    for item in found.held:
        for name, paths in item.files.items():
            cached = []
            for path in paths:
                tick(f"downloading {path}", done / max(1, total))
                cached.append(hub.download(found.repo, path, item.commit).resolve())
                done += item.sizes[path]
            if len(cached) > 1:
                join(cached, folder / name)
            else:
                _link(cached[0], folder / name)


def _link(cached: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(cached, path)
    except OSError as error:
        what, remedy = f"cannot be linked: {error.strerror}", "set HF_HUB_CACHE to a folder on a disk with hard links"
        raise HermetiqError(what, where=str(cached), remedy=remedy) from error


def _branch(hub: Hub, repo: str, name: str, heads: Mapping[str, str]) -> _Branch | None:
    """A branch with our list; None where there is none."""
    if name not in heads:
        return None
    commit = heads[name]
    tree = hub.tree(repo, commit)
    listed = listed_at(hub, repo, commit, tree)
    return _Branch(f"{repo}@{name}", commit, tree, listed) if listed else None


def _manifest(hub: Hub, repo: str, main: _Branch, folder: Path) -> Manifest:
    """The manifest of the release, as an export would have it in `folder`."""
    if not is_text(main.tree.get(MANIFEST)):
        raise HermetiqError(f"no {MANIFEST}", where=main.place, remedy=_AGAIN)
    data = hub.read(repo, MANIFEST, main.commit)
    listed = main.contents.files.get(MANIFEST)
    if listed is None or hashlib.sha256(data).hexdigest() != listed.sha256:
        raise CheckFailed("was changed since it was published", where=f"{main.place}: {MANIFEST}", remedy=_AGAIN)
    (folder / MANIFEST).write_bytes(data)
    try:
        return Manifest.read(folder)
    except HermetiqError as error:
        raise HermetiqError(error.what, where=f"{main.place}: {MANIFEST}", remedy=_AGAIN) from None


def _chosen(repo: str, manifest: Manifest, names: Sequence[str]) -> tuple[Artifact, ...]:
    called = {item.file: {item.spec, item.file, PurePosixPath(item.file).name} for item in manifest.artifacts}
    unknown = [name for name in names if not any(name in own for own in called.values())]
    if unknown:
        known = ", ".join(item.spec for item in manifest.artifacts)
        raise HermetiqError(f"the release has no {unknown[0]!r}", where=repo, remedy=f"--artifact takes one of {known}")
    return tuple(item for item in manifest.artifacts if not names or not called[item.file].isdisjoint(names))


def _held(artifact: Artifact, branch: _Branch | None) -> Held | None:
    """Where an artifact lies on a branch; None where not all of it does.

    Raises:
        CheckFailed: a file of it is not as it was published.
    """
    if branch is None:
        return None
    files: dict[str, list[str]] = {}
    for path, listed in sorted(branch.contents.files.items()):
        if listed.origin in artifact.files and is_sound(path):
            files.setdefault(listed.origin, []).append(path)
    if files.keys() != artifact.files.keys():
        return None
    for name, paths in files.items():
        _require_unchanged(artifact, name, paths, branch)
    sizes = {path: branch.tree[path].bytes for paths in files.values() for path in paths}
    return Held(artifact, branch.commit, {name: tuple(paths) for name, paths in files.items()}, sizes)


def _require_unchanged(artifact: Artifact, name: str, paths: Sequence[str], branch: _Branch) -> None:
    """Hold what the Hub says it has against the list, and the list against the manifest: before gigabytes travel."""
    for path in paths:
        listed, remote = branch.contents.files[path], branch.tree.get(path)
        if remote is None or not is_untouched(remote, listed):
            what = "is missing" if remote is None else "was changed since it was published"
            raise CheckFailed(what, where=f"{branch.place}: {path}", remedy=_AGAIN)
        # The parts of a split file have hashes of their own; joined, they are held against the manifest's.
        if path == repo_path(artifact, name) and listed.sha256 != artifact.files[name]:
            raise CheckFailed(f"is of another release than {MANIFEST}", where=f"{branch.place}: {path}", remedy=_AGAIN)
