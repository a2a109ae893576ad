"""What is on its way: the files of a branch with their bytes, and how the Hub would know them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .hub import RemoteFile

_LARGE: Final = 5_000_000
"""Bytes from which a file is sent by itself, whatever its kind."""
_REGULAR: Final = 20_000_000
"""Bytes up to which the Hub might keep a file in git itself; its limit is half of that."""
_BLOCK: Final = 1 << 22
_WEIGHTS: Final = (".gguf", ".safetensors")


@dataclass(frozen=True)
class Item:
    """One file on its way to a branch."""

    path: str
    """In the repo."""
    sha256: str
    size: int
    """Bytes."""
    content: Path | bytes

    @property
    def large(self) -> bool:
        return self.path.endswith(_WEIGHTS) or self.size >= _LARGE

    @property
    def blob(self) -> str:
        """Git's hash of the content."""
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        if isinstance(self.content, bytes):
            digest.update(self.content)
            return digest.hexdigest()
        with self.content.open("rb") as file:
            while data := file.read(_BLOCK):
                digest.update(data)
        return digest.hexdigest()

    @property
    def listed_blob(self) -> str:
        """`blob`, where the Hub might know the file by it; empty where it is too large for that."""
        return self.blob if self.size <= _REGULAR else ""

    def is_at(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub holds these very bytes."""
        if remote is None or remote.bytes != self.size:
            return False
        return remote.sha256 == self.sha256 if remote.sha256 else remote.blob == self.blob


@dataclass(frozen=True)
class Target:
    """One branch as it is to be; the list of its files is among them."""

    repo: str
    branch: str
    items: tuple[Item, ...]

    def __str__(self) -> str:
        return f"{self.repo}@{self.branch}"
