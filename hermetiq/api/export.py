"""`hermetiq.export`: everything that is asked for, in one pass of calibration and one read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from hermetiq import pipeline
from hermetiq.machine import accelerator
from hermetiq.manifest import Manifest
from hermetiq.plan import Job
from hermetiq.progress import Ticker, silent
from hermetiq.quantize.spec import parse
from hermetiq.repair import InitTags, template_at

from .options import Device, ExportOptions, PrepareOptions


def prepare_export(
    path: str | Path,
    *,
    to: Sequence[str],
    init_tags: str | None = None,
    chat_template: str | Path | None = None,
    **options: Unpack[PrepareOptions],
) -> Job:
    """All that can be known of an export before its weights are read; `.plan` is what `--dry-run` prints.

    Args:
        path: folder, .gguf file or Hub id.
        to: specs, as in `export`.
        init_tags: rows for untrained tags, as in `export`.
        chat_template: template that a repair puts in, as in `export`.
        options: the others that `hermetiq.api.options.ExportOptions` describes.

    Raises:
        Refusal: the checkpoint breaks a rule, or a layer does not fit a recipe.
        HermetiqError: an unusable path, spec, corpus, measurement or name.
    """
    specs = [parse(text) for text in to]
    started = None if init_tags is None else InitTags.parse(init_tags)
    template = None if chat_template is None else template_at(Path(chat_template))
    return pipeline.prepare(path, specs, init_tags=started, chat_template=template, **options)


def export(
    path: str | Path,
    folder: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    threads: int | None = None,
    device: Device = "auto",
    progress: Ticker = silent,
    **options: Unpack[ExportOptions],
) -> Manifest:
    """Quantize a checkpoint to all of `to`, and write what was made into `folder/hermetiq.json`.

    Args:
        path: folder, .gguf file or Hub id.
        folder: made if it does not exist; files get their names when they are complete.
        overwrite: replace an earlier export in `folder`.
        resume: go on where an interrupted export in `folder` stopped, to the same bytes.
        threads: of the GGUF quantizer; all cores by default.
        device: where calibration and solvers run.
        progress: called with what is being done and the share, 0 to 1, that is done.
        options: what decides the bytes: `to`, and all else that `hermetiq.api.options.ExportOptions` describes.

    Raises:
        Refusal: the checkpoint breaks a rule, or a layer does not fit a recipe.
        HermetiqError: an unusable path, spec, corpus, measurement or name; `folder` holds something else, or the disk
            is too small.
    """
    job = prepare_export(path, **options)
    return pipeline.export(
        job, Path(folder), overwrite=overwrite, resume=resume, threads=threads, device=accelerator(device),
        tick=progress,
    )  # fmt: skip
