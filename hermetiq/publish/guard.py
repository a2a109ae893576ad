"""What may leave the machine: listed in the manifest, verified, unchanged, of a kind that a release holds, no secret.

The last export is not always the last verification, and a folder gathers files. So every byte is hashed once more
before it is sent, and whatever does not pass stops the release before the Hub hears of it (U57, U75).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.manifest import Artifact, Manifest, sha256_of
from hermetiq.progress import Ticker, silent

from .plan import LICENCE_FILE
from .secrets import first_secret, secrets_in

_ALLOWED: Final = re.compile(
    r"[\w.+-]+\.(?:gguf|safetensors)"
    r"|model\.safetensors\.index\.json|output\.safetensors\.index\.json"
    r"|(?:config|generation_config|tokenizer_config|special_tokens_map|added_tokens|tokenizer|vocab|quantize_config"
    r"|measurement|hermetiq|hermetiq-files)\.json"
    r"|tokenizer\.model|merges\.txt|chat_template\.jinja|README\.md"
    rf"|{LICENCE_FILE.pattern}",
    re.ASCII | re.IGNORECASE,
)
"""Names of files that a release holds; whatever else a folder gathered stays at home."""


@dataclass(frozen=True)
class Unverified:
    """An artifact that was not shown to be the same chat model, and why."""

    file: str
    reason: str


def unverified(manifest: Manifest) -> tuple[Unverified, ...]:
    """Artifacts whose last verification is missing, of other bytes, or failed."""
    reasons = ((artifact.file, _reason(manifest, artifact)) for artifact in manifest.artifacts)
    return tuple(Unverified(file, reason) for file, reason in reasons if reason)


def require_verified(manifest: Manifest, *, force: str | None) -> None:
    """Stop a release of artifacts that no verification has passed.

    Args:
        force: why it is published all the same; the card says so.

    Raises:
        CheckFailed: something is not verified and no reason was given.
        HermetiqError: the reason is empty.
    """
    if force is not None and not force.strip():
        raise HermetiqError("--force takes a reason", remedy="say why; the card repeats it")
    found = unverified(manifest)
    if found and force is None:
        listed = "; ".join(f"{each.file}: {each.reason}" for each in found)
        raise CheckFailed(
            f"not verified: {listed}",
            remedy="run `hermetiq verify` on it and export again what fails, or give --force REASON",
        )


def require_unchanged(manifest: Manifest, folder: Path, tick: Ticker = silent) -> dict[str, int]:
    """Hash every file of the export against the manifest; returns the bytes of each, by its name there.

    No reason overrides this: the card would describe other bytes.

    Raises:
        CheckFailed: a file is missing or is not the one that was exported.
    """
    paths = manifest.paths(folder)
    sizes = {name: _size(path, name) for name, path in paths.items()}
    done, total = 0, max(1, sum(sizes.values()))
    for name, path in paths.items():
        tick(f"hashing {PurePosixPath(name).name}", done / total)
        if sha256_of(path) != manifest.files[name]:
            raise CheckFailed(
                "not the bytes that were exported", where=name, remedy="export and verify again; it was changed since"
            )
        done += sizes[name]
    return sizes


def require_publishable(names: Mapping[str, Path]) -> None:
    """Hold every file against the list of kinds that a release holds, and search it for credentials.

    Args:
        names: the files on this machine by their name in the manifest.

    Raises:
        HermetiqError: another kind of file, or a credential in one; with its place, never with the secret.
    """
    for name, path in names.items():
        require_allowed(name)
        if found := first_secret(path):
            raise _leak(found.kind, name, found.line)


def require_clean(texts: Mapping[str, bytes]) -> None:
    """The same search in texts that are not on disk: cards and lists.

    Raises:
        HermetiqError: a credential; with its place, never with the secret.
    """
    for name, data in texts.items():
        for found in secrets_in(data)[:1]:
            raise _leak(found.kind, name, found.line)


def require_allowed(name: str) -> None:
    """Refuse a file of a kind that no release holds.

    Raises:
        HermetiqError: it is of another kind.
    """
    if not _ALLOWED.fullmatch(PurePosixPath(name).name):
        raise HermetiqError(
            "not a file that a release holds",
            where=name,
            remedy="export again; only what an export writes is published",
        )


def _leak(kind: str, name: str, line: int) -> HermetiqError:
    return HermetiqError(
        f"holds what looks like {kind}", where=f"{name}:{line}",
        remedy="take it out of the source and export again; if it is real, revoke it",
    )  # fmt: skip


def _size(path: Path, name: str) -> int:
    if not path.is_file():
        raise CheckFailed("the file is missing", where=name, remedy="export again, or restore it")
    return path.stat().st_size


def _reason(manifest: Manifest, artifact: Artifact) -> str:
    verification = manifest.verification.get(artifact.file)
    if verification is None:
        return "never verified"
    if verification.sha256 != artifact.sha256:
        return "other bytes were verified"
    failed = [check.name for check in verification.checks if not check.passed]
    if failed:
        return f"failed {', '.join(failed)}"
    return "" if verification.checks else "verified without a single check"
