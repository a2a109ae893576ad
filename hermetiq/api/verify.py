"""`hermetiq.verify`: every artifact of an export held against its source."""

from __future__ import annotations

from pathlib import Path

from hermetiq.progress import Ticker, silent
from hermetiq.repair import InitTags
from hermetiq.verify import ArtifactReport, open_source
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
