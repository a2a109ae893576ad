"""Token rows to calibrate on, made of whole documents without padding.

Statistics must not count padding (U36), must see chats with their tags and terminators (U35), and prompts as short as
people type them. So documents lie next to each other in rows, and a share of the rows is short.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hermetiq.errors import Finding

SHORT_SHARE = 1 / 8
"""Of the rows asked for, so many are short."""
SHORTEST_ROW = 32
"""Tokens; what is left over below that makes no row."""
_SMALLEST_PIECE = 16
"""A text is not cut to fill a gap smaller than this."""


@dataclass(frozen=True)
class Encoded:
    """A document as token ids; one that begins with BOS has it in `ids`."""

    ids: tuple[int, ...]
    is_chat: bool
    """Chats are kept whole where they fit a row; texts are cut where a row ends."""


@dataclass(frozen=True)
class Packed:
    """Rows of token ids, and which of the documents (by their place) have tokens in them."""

    rows: tuple[tuple[int, ...], ...]
    documents: frozenset[int]


@dataclass(frozen=True)
class CalibrationReport:
    """What was asked for, and what became of it (U35)."""

    source: str
    """The file or data set, or `built-in`."""
    rows_asked: int
    rows_used: int
    row_tokens: int
    """Length of a full row, in tokens."""
    tokens: int
    """In all rows."""
    tag_tokens: int
    """Of these, control tokens of the template, terminators among them."""
    chats: int
    """Chats with tokens in the rows."""
    texts: int
    """Texts with tokens in the rows."""
    folded: int
    """Chats whose system message was put before the user's, because the template refuses a system role."""
    refused: int
    """Chats that were left out because the template refuses them, or because a base model has none."""
    findings: tuple[Finding, ...] = ()
    """`calibration-thin`."""

    @property
    def rows_dropped(self) -> int:
        """Rows asked for that the corpus does not fill."""
        return self.rows_asked - self.rows_used

    @property
    def tag_share(self) -> float:
        return self.tag_tokens / self.tokens


@dataclass(frozen=True)
class CalibrationRows:
    """What the model is calibrated on, and the account of it."""

    rows: tuple[tuple[int, ...], ...]
    report: CalibrationReport
    sha256: str
    """Of the rows' ids (`digest`); the manifest pins the corpus by it."""


def pack(
    documents: Sequence[Encoded],
    *,
    rows: int,
    row_tokens: int,
    seed: int,
    bos_id: int | None = None,
) -> Packed:
    """Fill rows with documents in their order; a gap at a row's end goes to the next document that fits it.

    A share of the rows (`SHORT_SHARE`) holds one short chat each, or the beginning of a text, of lengths spread evenly
    on a logarithmic scale from `SHORTEST_ROW` to half a row. The rows come in an order drawn from `seed`.

    Args:
        rows: at most so many come out; fewer where the documents do not suffice.
        row_tokens: no row is longer.
        bos_id: put before the rest of a document that is cut, so that every piece begins as the model saw texts begin.
    """
    draw = random.Random(seed)
    pieces = [
        _Piece(number, document.ids, whole=document.is_chat and len(document.ids) <= row_tokens)
        for number, document in enumerate(documents)
        if document.ids
    ]
    packed: list[list[_Piece]] = []
    longest = row_tokens // 2
    shorts = int(rows * SHORT_SHARE) if longest >= SHORTEST_ROW else 0
    for number in range(shorts):
        # Drawn from one of as many equal steps each, so that few rows are spread as evenly as many.
        length = round(SHORTEST_ROW * (longest / SHORTEST_ROW) ** ((number + draw.random()) / shorts))
        short = _take_short(pieces, length, longest, bos_id)
        if short is not None:
            packed.append([short])
    while len(packed) < rows:
        row = _take_row(pieces, row_tokens, bos_id)
        if sum(len(piece.ids) for piece in row) < SHORTEST_ROW:
            break
        packed.append(row)
    draw.shuffle(packed)
    return Packed(
        tuple(tuple(token for piece in row for token in piece.ids) for row in packed),
        frozenset(piece.document for row in packed for piece in row),
    )


def digest(rows: Sequence[Sequence[int]]) -> str:
    """SHA-256 as hex over each row's length and ids, as little-endian 32-bit numbers."""
    sums = hashlib.sha256()
    for row in rows:
        sums.update(np.array([len(row), *row], dtype="<u4").tobytes())
    return sums.hexdigest()


def count_tokens(rows: Sequence[Sequence[int]], ids: Collection[int]) -> int:
    """How many tokens of the rows are among `ids`."""
    return sum(token in ids for row in rows for token in row)


@dataclass(frozen=True)
class _Piece:
    """A document, or what is left of it."""

    document: int
    ids: tuple[int, ...]
    whole: bool
    """It may not be cut."""


def _take_row(pieces: list[_Piece], space: int, bos_id: int | None) -> list[_Piece]:
    """Remove from `pieces` what fills a row of `space` tokens."""
    row: list[_Piece] = []
    while space:
        fitting = (
            place
            for place, piece in enumerate(pieces)
            if len(piece.ids) <= space or (not piece.whole and space >= _SMALLEST_PIECE)
        )
        place = next(fitting, None)
        if place is None:
            break
        row.append(_cut(pieces, place, space, bos_id))
        space -= len(row[-1].ids)
    return row


def _take_short(pieces: list[_Piece], length: int, longest: int, bos_id: int | None) -> _Piece | None:
    """Remove the chat whose length is nearest to `length`, or where there is none so many tokens of a text."""
    chats = [place for place, piece in enumerate(pieces) if piece.whole and SHORTEST_ROW <= len(piece.ids) <= longest]
    if chats:
        return pieces.pop(min(chats, key=lambda place: abs(len(pieces[place].ids) - length)))
    texts = (place for place, piece in enumerate(pieces) if not piece.whole and len(piece.ids) >= length)
    place = next(texts, None)
    return None if place is None else _cut(pieces, place, length, bos_id)


def _cut(pieces: list[_Piece], place: int, length: int, bos_id: int | None) -> _Piece:
    """Remove at most `length` tokens of one piece; the rest stays in its place."""
    piece = pieces.pop(place)
    rest = piece.ids[length:]
    if rest:
        pieces.insert(place, replace(piece, ids=rest if bos_id is None else (bos_id, *rest)))
    return replace(piece, ids=piece.ids[:length])
