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

_KINDS: Final = (
    ("a Hugging Face token", rb"hf_[A-Za-z0-9]{30,}"),
    ("a Hugging Face token", rb"api_org_[A-Za-z0-9]{30,}"),
    ("an AWS access key", rb"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("an AWS access key", rb"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("a private key", rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----"),
    ("a GitHub token", rb"gh[pousr]_[A-Za-z0-9]{36,}"),
    ("a GitHub token", rb"github_pat_[A-Za-z0-9_]{60,}"),
    ("an API key", rb"sk-[a-z0-9-]{0,16}[A-Za-z0-9_]{20,}"),
    ("a Google API key", rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("a Slack token", rb"xox[abeoprs]-[A-Za-z0-9-]{20,}"),
    ("a password in a URL", rb"http(?:s)?://[^\s/:@\"'<>{}]{1,64}:[^\s/@\"'<>{}]{3,}@"),
    (
        "a line of a .env file",
        rb"^(?:export )?[A-Z0-9_]{0,64}(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)[A-Z0-9_]{0,64}="
        rb"[\"']?[^\s\"'{}<>$]{8,}",
    ),
)
_PATTERNS: Final = tuple((kind, re.compile(pattern, re.MULTILINE)) for kind, pattern in _KINDS)
"""One by one: a pattern that begins with a letter is searched ten times as fast as a choice of all."""
_BLOCK: Final = 1 << 22
_OVERLAP: Final = 1 << 12
"""Bytes that two blocks share, so that no secret is cut in two."""
HEAD: Final = 1 << 25
"""Bytes of a weight file that are searched: its header with all metadata; what follows are numbers."""


@dataclass(frozen=True)
class Secret:
    """Where something lies that must not be published, and what it looks like; never what it is."""

    kind: str
    line: int


def secrets_in(data: bytes) -> tuple[Secret, ...]:
    """Everything in a small file that looks like a credential, in the file's order."""
    found = sorted((match.start(), kind) for kind, pattern in _PATTERNS for match in pattern.finditer(data))
    return tuple(Secret(kind, data.count(b"\n", 0, start) + 1) for start, kind in found)


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
    data = text.encode(errors="replace")
    for _, pattern in _PATTERNS:
        data = pattern.sub(b"[redacted]", data)
    return data.decode(errors="replace")


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """The head of a file in overlapping blocks, each with the bytes that the next one does not repeat."""
    with path.open("rb") as file:
        carried = b""
        while file.tell() < HEAD and (read := file.read(_BLOCK)):
            block = carried + read
            carried = block[-_OVERLAP:]
            yield block, max(0, len(block) - _OVERLAP)
