"""The source of an export, as the export saw it: repaired in the same way where its manifest says so."""

from __future__ import annotations

from pathlib import Path

from hermetiq.checkpoint import open_checkpoint
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.manifest import Manifest
from hermetiq.repair import InitTags, mend


def open_source(
    folder: Path, path: str, *, adapter: str | None = None, init_tags: InitTags | None = None
) -> Checkpoint:
    """Open the checkpoint that an export was made from.

    Args:
        folder: what `export` wrote.
        path: the source, as it was before any repair.
        adapter: the LoRA of the export, if it had one.
        init_tags: asked for where rows came from a parent, whose path no manifest holds.

    Raises:
        HermetiqError: no manifest, no such source, or `init_tags` is missing or not the export's.
        Refusal: the source does not open, or cannot be repaired any more.
    """
    manifest = Manifest.read(folder)
    stated = manifest.init_tags
    given = None if init_tags is None else init_tags.told
    if stated == InitTags.PARENT and given is None:
        what, remedy = "rows of tags came from a parent", "give --init-tags parent:PATH, as in the export"
        raise HermetiqError(what, where=str(folder), remedy=remedy)
    if given not in (None, stated):
        what = f"the export was made {f'with --init-tags {stated}' if stated else 'without --init-tags'}"
        raise HermetiqError(what, where=str(folder), remedy="leave --init-tags out, or give the export's")
    if manifest.repairs is None:
        return open_checkpoint(path, adapter=adapter)
    init = init_tags or (InitTags.parse(stated) if stated else None)
    base_model = not manifest.source.contract.is_chat
    return mend(
        path, adapter=adapter, init_tags=init, chat_template=manifest.chat_template, base_model=base_model
    ).checkpoint


def require_source(folder: Path, manifest: Manifest, source: Checkpoint) -> None:
    """Refuse a checkpoint that the export in `folder` was not made from.

    Raises:
        HermetiqError: its fingerprint is not the manifest's.
    """
    if source.fingerprint() != manifest.source.fingerprint:
        raise HermetiqError(
            f"{source.path} is not the checkpoint that this export was made from",
            where=str(folder),
            remedy=f"give --source {manifest.source.name}, with the --adapter of the export if it had one",
        )
