"""Pieces of Markdown in which text of a checkpoint stays text: it may hold tags, pipes and fences of its own."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~!])")
_PATH = re.compile(r"(?<![\w:/.~-])(?:~|[A-Za-z]:)?(?:[/\\][^\s'\",:;/\\(){}\[\]]+){2,}")


def plain(text: str) -> str:
    """One line of text in which nothing is markup."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def code(text: str) -> str:
    """Text as a code span."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def block(text: str, language: str = "") -> str:
    """Text as a code block, whatever fences it holds."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * max(3, longest + 1)
    shown = "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
    return f"{fence}{language}\n{shown.rstrip(chr(10))}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def without_paths(text: str) -> str:
    """Absolute paths cut down to their last part: recipes name folders of the machine that they ran on."""
    return _PATH.sub(lambda match: re.split(r"[/\\]", match.group())[-1], text)
