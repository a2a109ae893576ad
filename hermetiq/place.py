"""Where an export may be written: nothing that hermetiq did not make is ever touched."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hermetiq import measurement
from hermetiq.errors import HermetiqError
from hermetiq.manifest import BESIDE, FILE, Manifest, sha256_of
from hermetiq.plan import Job

JOURNAL = ".hermetiq"
"""Work folder inside the output folder; gone when the export is complete."""
_PARTIAL = ".partial"
_ABANDONED = (f".gguf{_PARTIAL}", f"{FILE}{_PARTIAL}", f"{measurement.FILE}{_PARTIAL}")
"""What a killed export leaves behind, whatever it was making; the next one removes it."""


def make_room(folder: Path, job: Job, *, overwrite: bool, resume: bool) -> set[Path]:
    """Hold `folder` against the plan: empty, or an earlier export that may go; and a disk that is large enough.

    Returns the files of that earlier export: they stay until the new ones are complete.

    Raises:
        HermetiqError: the folder holds something else, or the disk is too small.
    """
    # The lowest part of the path that exists; a link that leads nowhere is no place, either.
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise HermetiqError("not a folder", where=str(existing), remedy="choose another OUT")
    if job.source.path.resolve().is_relative_to(folder.resolve()):
        raise HermetiqError("the source lies in it", where=str(folder), remedy="choose another OUT")
    journal = folder / JOURNAL
    unfinished = journal.is_dir() and not journal.is_symlink()
    # Whatever is no real folder counts, so that nothing is ever written through a link.
    found = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    found = {path for path in found if journal not in path.parents}
    abandoned = {path for path in found if path.name.endswith(_ABANDONED) or _unfinished(path, folder, job)}
    finished = sorted(found - abandoned)
    if unfinished and (resume or overwrite):
        # What the interrupted export had finished is made again.
        finished = [path for path in finished if not _ours(path, folder, job)]
    if finished and not overwrite:
        raise HermetiqError(
            f"the folder is not empty ({finished[0].relative_to(folder)})",
            where=str(folder),
            remedy="choose an empty OUT, or --overwrite to replace an earlier export",
        )
    earlier = _earlier(folder) if finished else set()
    if foreign := [path for path in finished if path not in earlier and path != folder / FILE]:
        raise HermetiqError(
            f"{foreign[0].relative_to(folder)} was not made by hermetiq", where=str(folder), remedy="choose another OUT"
        )
    if unfinished and overwrite and not resume:
        shutil.rmtree(journal)
    for path in abandoned:
        path.unlink()
    free = shutil.disk_usage(existing).free + sum(path.stat().st_size for path in journal.glob("*"))
    needed = job.plan.disk
    if free < needed:
        raise HermetiqError(
            f"the export takes {needed} bytes, {free} are free", where=str(folder), remedy="free disk space"
        )
    return earlier


def finished(folder: Path, job: Job) -> Manifest | None:
    """The manifest of this very export, where it is complete and its files are untouched: nothing is left to resume."""
    if (folder / JOURNAL).exists() or not (folder / FILE).exists():
        return None
    manifest = Manifest.read(folder)
    made = [(item.file, item.spec) for item in manifest.artifacts]
    asked = [(path, str(spec)) for path, spec in job.specs.items()]
    calibrated = manifest.calibration and (manifest.calibration.sha256, manifest.calibration.sequential)
    measured = manifest.measurement.sha256 if manifest.measurement else None
    same = (
        made == asked
        and calibrated == (job.rows and (job.rows.sha256, job.sequential))
        and any(item.imatrix for item in manifest.artifacts) == job.importance
        and manifest.source.fingerprint == job.fingerprint
        and (job.measurement is None or measured == job.measurement.sha256)
    )
    if not same:
        return None
    stored = manifest.files.items()
    whole = all((folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in stored)
    return manifest if whole else None


@contextmanager
def no_empty_folders(*folders: Path) -> Iterator[None]:
    """Where the work inside fails, those of `folders` that it made go again; inner ones come last."""
    made = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def clear(paths: Collection[Path], folder: Path) -> None:
    """Delete files of an earlier export, and the folders below `folder` that they leave empty."""
    for path in paths:
        path.unlink(missing_ok=True)
    for parent in sorted({path.parent for path in paths} - {folder}, reverse=True):
        with suppress(OSError):
            parent.rmdir()


def files_of(manifest: Manifest, folder: Path) -> set[Path]:
    """Every file of an export but its manifest."""
    return set(manifest.paths(folder).values())


def _unfinished(path: Path, folder: Path, job: Job) -> bool:
    return path.name.endswith(_PARTIAL) and _ours(path, folder, job)


def _ours(path: Path, folder: Path, job: Job) -> bool:
    """Whether the export that is planned writes here: its manifest, a file of its plan, or one in a folder of it."""
    if path.is_symlink():
        return False
    name = path.relative_to(folder).as_posix().removesuffix(_PARTIAL)
    return name in {FILE, measurement.FILE, *BESIDE, *job.gguf} or name.rpartition("/")[0] in job.folders


def _earlier(folder: Path) -> set[Path]:
    """The files of the export that `folder` holds, by its manifest; none without one."""
    if not (folder / FILE).exists():
        return set()
    try:
        manifest = Manifest.read(folder)
    except HermetiqError as error:
        raise HermetiqError(error.what, where=error.where, remedy="choose another OUT, or delete this one") from error
    return files_of(manifest, folder) | {folder / name for name in BESIDE}
