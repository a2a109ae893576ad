"""Rows hold whole documents without padding, a share of them is short, and a seed says which."""

from __future__ import annotations

import hashlib
import struct
from itertools import count, pairwise

import pytest

from hermetiq.calibration.packing import SHORTEST_ROW, Encoded, count_tokens, digest, pack

BOS = 1
_numbers = count(100)


def document(length: int, *, chat: bool) -> Encoded:
    """BOS and ids that no other document has."""
    return Encoded((BOS, *(next(_numbers) for _ in range(length - 1))), is_chat=chat)


def chats(*lengths: int) -> list[Encoded]:
    return [document(length, chat=True) for length in lengths]


def texts(*lengths: int) -> list[Encoded]:
    return [document(length, chat=False) for length in lengths]


@pytest.fixture
def mixed() -> list[Encoded]:
    return [item for pair in zip(chats(*range(20, 220, 4)), texts(*range(50, 1050, 20)), strict=True) for item in pair]


def test_rows_are_full_but_for_the_short_share(mixed: list[Encoded]) -> None:
    packed = pack(mixed, rows=32, row_tokens=256, seed=0, bos_id=BOS)
    lengths = sorted(map(len, packed.rows))
    assert len(lengths) == 32
    assert all(SHORTEST_ROW <= length <= 128 for length in lengths[:4])
    assert all(256 - 16 < length <= 256 for length in lengths[4:])
    assert min(lengths) < 64


def test_no_token_is_lost_doubled_or_made_up(mixed: list[Encoded]) -> None:
    packed = pack(mixed, rows=1000, row_tokens=256, seed=1, bos_id=BOS)
    put = sorted(token for row in packed.rows for token in row if token != BOS)
    had = sorted(token for item in mixed for token in item.ids if token != BOS)
    assert set(put) <= set(had)
    assert len(put) == len(set(put))
    # What is left over at the end makes no row, and nothing else is missing.
    assert len(had) - len(put) < SHORTEST_ROW
    assert packed.documents == frozenset(range(len(mixed)))


def test_chats_stay_whole_and_texts_are_cut_with_bos_before_each_piece(mixed: list[Encoded]) -> None:
    rows = pack(mixed, rows=64, row_tokens=256, seed=2, bos_id=BOS).rows
    whole = {item.ids for item in mixed if item.is_chat}
    for row in rows:
        starts = [place for place, token in enumerate(row) if token == BOS]
        assert starts[0] == 0
        assert all(after - before > 1 for before, after in pairwise(starts))
    pieces = [(BOS, *piece) for row in rows for piece in split(row)]
    seen = {token for piece in pieces for token in piece}
    assert {ids for ids in whole if ids[1] in seen} <= set(pieces)


def split(row: tuple[int, ...]) -> list[tuple[int, ...]]:
    pieces: list[list[int]] = []
    for token in row:
        if token == BOS:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [tuple(piece) for piece in pieces]


def test_without_bos_the_rest_of_a_text_just_goes_on() -> None:
    (text,) = texts(200)
    packed = pack([text], rows=2, row_tokens=100, seed=0)
    assert sorted(packed.rows) == sorted((text.ids[:100], text.ids[100:]))


def test_only_a_chat_longer_than_a_row_is_cut() -> None:
    fitting, longer = chats(60, 150)
    packed = pack([longer, fitting], rows=4, row_tokens=100, seed=0, bos_id=BOS)
    first = longer.ids[:100]
    assert first in packed.rows
    assert (BOS, *longer.ids[100:]) in packed.rows or any(row[1:50] == longer.ids[100:149] for row in packed.rows)
    assert any(fitting.ids == row[-60:] or fitting.ids == row[:60] for row in packed.rows)


def test_chats_alone_leave_gaps_rather_than_be_cut() -> None:
    packed = pack(chats(*[70] * 12), rows=8, row_tokens=100, seed=0, bos_id=BOS)
    assert [len(row) for row in packed.rows] == [70] * 8
    assert len(packed.documents) == 8


def test_texts_alone_give_short_rows_too() -> None:
    lengths = sorted(len(row) for row in pack(texts(*[400] * 20), rows=16, row_tokens=200, seed=3).rows)
    assert all(SHORTEST_ROW <= length <= 100 for length in lengths[:2])
    assert lengths[2:] == [200] * 14


def test_short_rows_reach_down_to_prompts_as_people_type_them() -> None:
    lengths = [
        len(row)
        for seed in range(4)
        for row in pack(chats(*range(32, 257)), rows=64, row_tokens=512, seed=seed).rows
        if len(row) <= 256
    ]
    assert len(lengths) == 4 * 8
    assert min(lengths) < 50
    assert max(lengths) > 128


def test_the_seed_decides_and_nothing_else(mixed: list[Encoded]) -> None:
    first, again, other = (pack(mixed, rows=16, row_tokens=256, seed=seed, bos_id=BOS).rows for seed in (5, 5, 6))
    assert first == again
    assert digest(first) == digest(again) != digest(other)


def test_too_little_makes_no_row() -> None:
    assert pack(chats(20), rows=4, row_tokens=512, seed=0).rows == ()
    assert pack([Encoded((), is_chat=False)], rows=4, row_tokens=512, seed=0).rows == ()


def test_the_digest_is_over_lengths_and_ids() -> None:
    assert digest([(5, 70_000), (6,)]) == hashlib.sha256(struct.pack("<5I", 2, 5, 70_000, 1, 6)).hexdigest()
    assert digest([(1, 2), (3,)]) != digest([(1,), (2, 3)])


def test_tokens_are_counted_by_id() -> None:
    assert count_tokens([(1, 7, 7), (8, 1)], {7, 8}) == 3
