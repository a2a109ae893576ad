"""Finds credentials in what is about to be published.

A token in a notebook's output, a template or a card is public for ever once it is pushed (U75). What is found is told
by file and line; the secret itself is never repeated, in an error as little as in a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_KINDS: Final = {
    "a Hugging Face token": rb"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b",
    "an AWS access key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b",
    "an API key": rb"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{32,}\b",
    "a Google API key": rb"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": rb"\bxox[abeoprs]-[A-Za-z0-9-]{20,}\b",
    "a password in a URL": rb"\bhttps?://[^\s/:@\"'<>{}]{1,64}:[^\s/@\"'<>{}]{3,}@",
    "a line of a .env file": (
        rb"(?m)^(?:export )?[A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)[A-Z0-9_]*="
        rb"[\"']?[^\s\"'{}<>$]{8,}"
    ),
}
_ANY = re.compile(b"|".join(b"(" + pattern.replace(b"(?m)", b"") + b")" for pattern in _KINDS.values()), re.MULTILINE)
_NAMES: Final = tuple(_KINDS)
_BLOCK: Final = 1 << 22
_OVERLAP: Final = 1 << 12
"""Bytes that two blocks share, so that no secret is cut in two."""
HEAD: Final = 1 << 26
"""Bytes of a weight file that are searched: its header with all metadata; what follows are numbers."""


@dataclass(frozen=True)
class Secret:
    """Where something lies that must not be published, and what it looks like; never what it is."""

    kind: str
    line: int


def secrets_in(data: bytes) -> tuple[Secret, ...]:
    """Everything in a small file that looks like a credential."""
    return tuple(
        Secret(_NAMES[(match.lastindex or 1) - 1], data.count(b"\n", 0, match.start()) + 1)
        for match in _ANY.finditer(data)
    )


def first_secret(path: Path) -> Secret | None:
    """The first credential in a file, of which only `HEAD` bytes are read.

    Raises:
        OSError: it cannot be read.
    """
    line = 1
    for block, kept in _blocks(path):
        if found := secrets_in(block):
            return Secret(found[0].kind, found[0].line + line - 1)
        line += block.count(b"\n", 0, kept)
    return None


def redacted(text: str) -> str:
    """`text` without anything that looks like a credential."""
    return _ANY.sub(b"[redacted]", text.encode(errors="replace")).decode()


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """The head of a file in overlapping blocks, each with the bytes that the next one does not repeat."""
    with path.open("rb") as file:
        carried = b""
        while file.tell() < HEAD and (read := file.read(_BLOCK)):
            block = carried + read
            carried = block[-_OVERLAP:]
            yield block, max(0, len(block) - _OVERLAP)
