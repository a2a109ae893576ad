"""`hermetiq.publish`: a verified export on the Hub, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from hermetiq.progress import Ticker, silent
from hermetiq.publish import Job, Layout, Published, prepare
from hermetiq.publish import publish as send

from .options import LayoutName, PublishOptions


def prepare_release(
    folder: str | Path,
    repo: str,
    *,
    layout: LayoutName = "per-format",
    base_model: str | None = None,
    license: str | None = None,
    private: bool = False,
    force: str | None = None,
    progress: Ticker = silent,
) -> Job:
    """All that can be known of a release before anything is sent; `.plan` is what `--dry-run` prints.

    Args:
        folder: what `export` wrote and `verify` passed.
        repo: `ORG/NAME`; `-GGUF` and the like are added.
        layout: a repo for each format, or one for all.
        base_model: Hub id of the model that was quantized, or `none`.
        license: its licence, where no card states the right one.
        private: counts when it is sent, and decides nothing here.
        force: why to publish what no verification passed; the card says so.
        progress: called with what is being done and the share, 0 to 1, that is done.

    Raises:
        CheckFailed: an artifact is not verified, or a byte changed since.
        Refusal: `licence-unknown`.
        HermetiqError: no export, no Hub id, a file that no release holds, or a credential in one.
    """
    return prepare(
        Path(folder), repo, layout=Layout(layout), license=license, base_model=base_model, force=force, tick=progress
    )


def publish(
    folder: str | Path,
    repo: str,
    *,
    force: str | None = None,
    progress: Ticker = silent,
    **options: Unpack[PublishOptions],
) -> Published:
    """Bring a verified export to the Hub, whole or not at all; run again, it goes on where it was cut.

    Args:
        folder: what `export` wrote and `verify` passed.
        repo: `ORG/NAME`; `-GGUF` and the like are added.
        force: why to publish what no verification passed; the card says so.
        progress: called with what is being done and the share, 0 to 1, that is done.
        options: those that `hermetiq.api.options.PublishOptions` describes.

    Raises:
        CheckFailed: an artifact is not verified, a byte changed since, or the Hub holds other bytes than were sent.
        Refusal: `licence-unknown`, or `repo-not-ours`.
        HermetiqError: no export, no Hub id, a file that no release holds, a credential in one, or the Hub or the
            connection failed for good; the next run goes on.
    """
    job = prepare_release(folder, repo, force=force, progress=progress, **options)
    return send(job, private=options.get("private", False), tick=progress)
