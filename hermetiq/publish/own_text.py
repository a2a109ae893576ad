"""The part of a card that its readers may write: between two markers, and carried over to every later card (U62)."""

from __future__ import annotations

import hashlib
from typing import Final

from hermetiq.errors import HermetiqError

OPEN: Final = "<!-- hermetiq: your text -->"
CLOSE: Final = "<!-- hermetiq: end of your text -->"
EMPTY: Final = "\n"


def own_text(card: str) -> str:
    """What stands between the markers of a card, as it stands there.

    Raises:
        HermetiqError: a marker is missing, doubled or misplaced, so that nobody knows what is whose.
    """
    before, inner, behind = _cut(card)
    del before, behind
    return inner


def digest(card: str) -> str:
    """SHA-256, as hex, of a card without what stands between its markers. Raises as `own_text` does."""
    before, _, behind = _cut(card)
    # The Hub's editor may change line ends.
    return hashlib.sha256("\n".join(f"{before}{behind}".splitlines()).strip().encode()).hexdigest()


def _cut(card: str) -> tuple[str, str, str]:
    if card.count(OPEN) != 1 or card.count(CLOSE) != 1 or card.index(OPEN) > card.index(CLOSE):
        raise HermetiqError(
            "its markers are damaged, so your text and ours cannot be told apart", where="README.md",
            remedy=f"put your text between one {OPEN} and one {CLOSE}",
        )  # fmt: skip
    before, _, rest = card.partition(OPEN)
    inner, _, behind = rest.partition(CLOSE)
    return before, inner, behind
