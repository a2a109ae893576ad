"""`hermetiq.verify`: every artifact of an export held against its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hermetiq.progress import Ticker, part, silent
from hermetiq.publish import Hub, fetch
from hermetiq.repair import InitTags
from hermetiq.verify import ArtifactReport, open_source, require_source
from hermetiq.verify import verify as hold_against

from .options import MaxKl


def verify(
    folder: str | Path,
    source: str | Path,
    *,
    adapter: str | None = None,
    max_kl: MaxKl | None = None,
    runtime: str | None = None,
    init_tags: str | None = None,
    progress: Ticker = silent,
) -> tuple[ArtifactReport, ...]:
    """Prove that the artifacts are still the same chat model, and write what was found into `folder/hermetiq.json`.

    A failed check is no exception: ask each report for `.passed`, and for its `.checks` and their reasons.

    Args:
        folder: what `export` wrote.
        source: the checkpoint it was made from: folder, .gguf file or Hub id.
        adapter: the LoRA of the export, if it had one.
        max_kl: largest mean KL allowed, nats per token: for every artifact, or by spec or format; each type has a
            limit of its own without.
        runtime: a package that is asked about every artifact it reads, for instance `gptqmodel`.
        init_tags: asked for where rows of tags came from a parent, whose path no manifest holds.
        progress: called with what is being done and the share, 0 to 1, that is done.

    Raises:
        HermetiqError: no export in `folder`, a file of it is missing, `source` is another checkpoint, or the runtime
            cannot be had or reads none of the artifacts.
        Refusal: the source does not open.
    """
    started = None if init_tags is None else InitTags.parse(init_tags)
    opened = open_source(Path(folder), str(source), adapter=adapter, init_tags=started)
    return hold_against(Path(folder), opened, max_kl=max_kl, runtime=runtime, tick=progress)


@dataclass(frozen=True)
class PublishedReports:
    """What was found out about a published repo."""

    reports: tuple[ArtifactReport, ...]
    elsewhere: tuple[str, ...]
    """Artifacts of the release that lie in other repos, by their name in its manifest; they were not looked at."""


def verify_published(
    repo: str,
    source: str | Path | None = None,
    *,
    artifacts: Sequence[str] = (),
    adapter: str | None = None,
    max_kl: MaxKl | None = None,
    runtime: str | None = None,
    init_tags: str | None = None,
    progress: Ticker = silent,
) -> PublishedReports:
    """Prove what `publish` brought to the Hub, by what lies there now; only files of the artifacts are downloaded.

    They stay in the cache of `huggingface_hub`, and what was found is written nowhere.

    Args:
        repo: `ORG/NAME`, as it is on the Hub.
        source: the checkpoint it was made from; the model that the release names where None.
        artifacts: which ones, by spec (`gguf:Q4_K_M`) or file; all that lie in the repo without.
        adapter: the LoRA of the export, if it had one.
        max_kl: as for `verify`; limits of artifacts of the release that are not looked at are let be.
        runtime: as for `verify`.
        init_tags: asked for where rows of tags came from a parent, whose path no manifest holds.
        progress: called with what is being done and the share, 0 to 1, that is done.

    Raises:
        CheckFailed: a file is not as it was published.
        HermetiqError: no such repo, none that hermetiq published, the Hub cannot be reached, `source` is another
            checkpoint or must be given, or what `verify` raises.
        Refusal: the source does not open.
    """
    started = None if init_tags is None else InitTags.parse(init_tags)
    hub = Hub(tick=progress, tries=fetch.TRIES)
    with fetch.workplace(repo) as folder:
        progress(f"looking at {repo}", 0.0)
        found = fetch.find(hub, repo, folder, artifacts)
        opened = open_source(folder, str(source or found.base_model), adapter=adapter, init_tags=started)
        # A wrong source is told before anything large is downloaded.
        require_source(Path(repo), found.manifest, opened)
        fetch.lay_out(hub, found, folder, part(progress, 0.0, 0.3))
        limits, span = _of_held(max_kl, found), part(progress, 0.3, 1.0)
        reports = hold_against(folder, opened, max_kl=limits, runtime=runtime, tick=span)
        return PublishedReports(reports, found.elsewhere)


def _of_held(max_kl: MaxKl | None, found: fetch.Found) -> MaxKl | None:
    """The limits without those for the rest of the release: one recipe serves all of its repos."""
    if not isinstance(max_kl, Mapping):
        return max_kl
    held, others = (
        {name for spec in specs for name in (spec, spec.partition(":")[0])}
        for specs in ([item.spec for item in found.manifest.artifacts], found.others)
    )
    return {name: limit for name, limit in max_kl.items() if name in held or name not in others}
