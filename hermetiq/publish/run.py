"""From an export to a release, as a straight line: guard, licence, plan; then look, split, write cards, upload.

`prepare` is all that can be known on this machine, and is what `--dry-run` shows; `publish` speaks to the Hub.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hermetiq import typed_json
from hermetiq.chat.parents import recipe_parents
from hermetiq.checkpoint.hub import is_hub_id
from hermetiq.errors import HermetiqError, Refusal
from hermetiq.evaluate import Evaluation
from hermetiq.manifest import FILE as MANIFEST
from hermetiq.manifest import Manifest, sha256_of
from hermetiq.progress import Ticker, part, silent
from hermetiq.rules import finding

from . import guard, licence, own_text
from .card import Release, card, example
from .contents import Contents, Listed
from .hub import Hub
from .journal import Journal
from .markdown import without_paths
from .plan import CARD, CONTENTS, LIMIT, MAIN, Branch, Layout, Plan, PlannedFile, Repo, plan
from .split import parts, split
from .standing import Standings, look
from .targets import Item, Target
from .upload import upload

NO_BASE_MODEL = "none"
"""In the place of a Hub id: the model that was quantized is on no Hub."""


@dataclass(frozen=True)
class Job:
    """A release that is ready to be sent."""

    folder: Path
    release: Release
    limit: int
    """Bytes above which a GGUF is split."""

    @property
    def plan(self) -> Plan:
        return self.release.plan

    def to_json(self) -> dict[str, Any]:
        """Stable, for scripts."""
        known = self.release
        return {
            **known.plan.to_json(),
            "licence": asdict(known.licence),
            "base_model": known.base_model,
            "forced": known.forced,
        }


@dataclass(frozen=True)
class Published:
    """A release that is on the Hub, whole."""

    commits: Mapping[str, str]
    """By `REPO@BRANCH`."""
    urls: tuple[str, ...]
    """Of the repos."""

    def to_json(self) -> dict[str, Any]:
        """Stable, for scripts."""
        return {"urls": list(self.urls), "commits": dict(self.commits)}


def prepare(
    folder: Path,
    repo: str,
    *,
    layout: Layout = Layout.per_format,
    license: str | None = None,
    base_model: str | None = None,
    force: str | None = None,
    limit: int = LIMIT,
    licence_of: Callable[[str], str | None] | None = None,
    tick: Ticker = silent,
) -> Job:
    """Hold an export against everything that a release needs, and plan it. Nothing is written or sent.

    Args:
        folder: what `export` wrote and `verify` passed.
        repo: `ORG/NAME`.
        license: in the place of what the source and its parents state.
        base_model: Hub id of the model that was quantized, or `none`; needed where the manifest has a plain name.
        force: why to publish what no verification passed; the card says so.
        limit: bytes above which a GGUF is split.
        licence_of: what the card of a model on the Hub states; asked about parents alone.

    Raises:
        CheckFailed: an artifact is not verified, or a byte changed since.
        Refusal: `licence-unknown`.
        HermetiqError: no export, no Hub id, a file that no release holds, or a credential in one.
    """
    manifest = Manifest.read(folder)
    guard.require_verified(manifest, force=force)
    source = _base_model(manifest, base_model)
    settled = _licence(manifest, license, licence_of or Hub(tick=tick).licence)
    paths = manifest.paths(folder)
    sizes = guard.require_unchanged(manifest, folder, tick)
    guard.require_publishable(paths)
    large = {name: path for name, path in paths.items() if name.endswith(".gguf") and sizes[name] > limit}
    planned = plan(
        manifest, repo, layout=layout, sizes=sizes, parts={name: parts(path, limit) for name, path in large.items()}
    )
    shown = example(manifest.source.contract)
    evaluation = Evaluation.read(folder)
    measured = None if evaluation is None else evaluation.of(manifest)
    return Job(folder, Release(_portable(manifest, source), planned, settled, source, shown, force, measured), limit)


def publish(job: Job, *, hub: Hub | None = None, private: bool = False, tick: Ticker = silent) -> Published:
    """Bring a release to the Hub, or go on where an earlier run was cut.

    Raises:
        Refusal: `repo-not-ours`.
        CheckFailed: the Hub holds other bytes than were sent; nothing was announced.
        HermetiqError: the Hub or the connection failed for good; the next run goes on.
    """
    hub = hub or Hub(tick=tick)
    tick("asking the Hub", 0.0)
    names = {repo.id: [branch.name for branch in repo.branches] for repo in job.plan.repos}
    standings = look(hub, names, forced=job.release.forced is not None)
    cards = {repo.id: _card(job, repo, standings) for repo in job.plan.repos}
    journal = Journal.open(job.folder, job.plan)
    split_files = _split(job, journal, part(tick, 0.0, 0.1))
    targets = [
        _target(job, repo, branch, cards[repo.id], split_files) for repo in job.plan.repos for branch in repo.branches
    ]
    for target in targets:
        guard.require_clean({item.path: item.content for item in target.items if isinstance(item.content, bytes)})
    commits = upload(hub, targets, standings, journal, private=private, tick=part(tick, 0.1, 1.0))
    journal.remove()
    return Published(commits, tuple(f"{hub.endpoint}/{repo.id}" for repo in job.plan.repos))


def _base_model(manifest: Manifest, given: str | None) -> str | None:
    stated = manifest.source.name if given is None else given
    if stated == NO_BASE_MODEL and given is not None:
        return None
    if not is_hub_id(stated):
        raise HermetiqError(
            f"{stated!r} does not say which model on the Hub was quantized", where="--base-model",
            remedy=f"--base-model ORG/NAME, or --base-model {NO_BASE_MODEL} where it is on no Hub",
        )  # fmt: skip
    return stated


def _licence(manifest: Manifest, given: str | None, licence_of: Callable[[str], str | None]) -> licence.Licence:
    """The release's licence; the Hub is asked about parents only where they count."""
    made = manifest.source.provenance
    merged = made.merge_recipe is not None or len(made.base_models) > 1
    asked = merged or (made.license is None and given is None)
    named = dict.fromkeys((*made.base_models, *recipe_parents(made.merge_recipe or ""))) if asked else {}
    parents = {name: licence_of(name) for name in named if is_hub_id(name)}
    return licence.settle(made.license, parents=parents, merged=merged, given=given, source=manifest.source.name)


def _portable(manifest: Manifest, base_model: str | None) -> Manifest:
    """The manifest as it is published: the source by its name on the Hub, a merge recipe without folders."""
    source, recipe = manifest.source, manifest.source.provenance.merge_recipe
    made = source.provenance if recipe is None else replace(source.provenance, merge_recipe=without_paths(recipe))
    return replace(manifest, source=replace(source, name=base_model or source.name, provenance=made))


def _card(job: Job, repo: Repo, standings: Standings) -> str:
    """The new card of a repo, with what its owner wrote on the one that is there.

    Raises:
        Refusal: `repo-not-ours`, our own text was changed.
    """
    standing = standings.repos.get(repo.id, {}).get(MAIN)
    if standing is None or not standing.card or standing.listed is None:
        return card(job.release, repo, own_text.EMPTY)
    kept = own_text.own_text(standing.card)
    if own_text.digest(standing.card) != standing.listed.card and job.release.forced is None:
        raise Refusal(
            finding(
                "repo-not-ours",
                file=f"{repo.id}@{MAIN}",
                field=CARD,
                found="a card that was changed by hand",
                expected=f"text of yours between {own_text.OPEN} and {own_text.CLOSE} alone",
            )
        )
    return card(job.release, repo, kept)


def _split(job: Job, journal: Journal, tick: Ticker) -> dict[str, tuple[Path, str]]:
    """The parts of every GGUF that is too large, on disk: path and SHA-256 by name; those of a cut run are used."""
    found: dict[str, tuple[Path, str]] = {}
    paths = job.release.manifest.paths(job.folder)
    for origin in sorted({file.origin for file in _parts(job.plan)}):
        planned = parts(paths[origin], job.limit)
        places = {part.name: journal.folder / part.name for part in planned}
        known = {name: journal.state.parts.get(name) for name in places}
        if not all(path.is_file() and sha256_of(path) == known[name] for name, path in places.items()):
            needed, free = sum(part.bytes for part in planned), shutil.disk_usage(journal.folder).free
            if needed > free:
                raise HermetiqError(
                    f"splitting takes {needed} bytes, {free} are free", where=str(journal.folder),
                    remedy="free disk space",
                )  # fmt: skip
            digests = split(paths[origin], planned, journal.folder, job.limit, tick)
            journal.split({path.name: digest for path, digest in digests.items()})
        found |= {name: (path, journal.state.parts[name]) for name, path in places.items()}
    return found


def _parts(planned: Plan) -> Iterator[PlannedFile]:
    """Files that are parts of another."""
    files = (file for repo in planned.repos for branch in repo.branches for file in branch.files)
    return (file for file in files if file.origin and not file.sha256)


def _target(job: Job, repo: Repo, branch: Branch, text: str, split_files: Mapping[str, tuple[Path, str]]) -> Target:
    """A branch with the bytes of all its files, and the list of them."""
    manifest = job.release.manifest
    made = {CARD: text.encode(), MANIFEST: typed_json.encode(manifest)}
    items, origins = [], {}
    for file in branch.files:
        if file.path == CONTENTS:
            continue
        guard.require_allowed(file.path)
        if file.path in made:
            items.append(_item(file.path, made[file.path]))
        elif file.sha256:
            items.append(Item(file.path, file.sha256, file.bytes, job.folder / file.origin))
        else:
            path, digest = split_files[Path(file.path).name]
            items.append(Item(file.path, digest, file.bytes, path))
        origins[file.path] = file.origin
    listed = {item.path: Listed(item.sha256, item.listed_blob, item.size, origins[item.path]) for item in items}
    digest = own_text.digest(text) if branch.name == MAIN else ""
    contents = Contents(manifest.source.fingerprint, listed, digest)
    return Target(repo.id, branch.name, (*items, _item(CONTENTS, contents.encode())))


def _item(path: str, data: bytes) -> Item:
    return Item(path, hashlib.sha256(data).hexdigest(), len(data), data)
