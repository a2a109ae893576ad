"""Numbers as people read them, the same on the terminal, on a card and in the report."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes in decimal units, as disks and the Hub count them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
