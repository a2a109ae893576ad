"""`hermetiq-files.json`: on every branch, what hermetiq put there.

By this list a repo is known again as ours, what an earlier release left is found and taken away, and what somebody
changed by hand since is seen before it is replaced (U62). Like all files of a repo it may be anybody's work, so it is
read with suspicion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hermetiq import __version__, typed_json
from hermetiq.errors import HermetiqError

VERSION: Final = 1


@dataclass(frozen=True)
class Listed:
    """One file of a branch."""

    sha256: str
    blob: str
    """Git's hash of the content, by which the Hub knows small files; empty for large ones."""
    bytes: int
    origin: str
    """Its name in the manifest; empty for what a release adds; of a part, the file that it is a part of."""


@dataclass(frozen=True)
class Contents:
    """Everything that hermetiq put on one branch, but this list."""

    source: str
    """Fingerprint of the source, as in the manifest."""
    files: Mapping[str, Listed]
    card: str
    """SHA-256 of the card without the text that its readers wrote; empty where there is no card."""
    hermetiq: str = __version__
    version: int = VERSION

    def encode(self) -> bytes:
        return typed_json.encode(self)


def read(data: bytes) -> Contents | None:
    """The list in the bytes of a file; None where it is none of ours."""
    try:
        return typed_json.parse(data, Contents, where="", version=VERSION, remedy="")
    except HermetiqError:
        return None
