"""Groups and sizes of the ladder's rungs against a count of columns and numbers one by one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetiq.quantize.ladder import LADDER, Rung, bit_budget, head_rung, stored_bits
from tests.oracles import exl2 as oracle

COLUMNS = [32, 64, 96, 160, 576, 1536, 4096, 11008]
RUNGS = [*LADDER, head_rung(6), head_rung(8), Rung(((6, 0.05), (3, 0.2), (2, 0.75)), 32)]


@pytest.mark.parametrize("rung", RUNGS, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
def test_columns_have_the_widths_that_their_shares_ask_for(rung: Rung, columns: int) -> None:
    groups = rung.groups(columns)
    assert [bits for bits, size in groups for _ in range(size)] == oracle.widths(rung.widths, rung.group_size, columns)


@given(
    bits=st.sets(st.sampled_from([2, 3, 4, 5, 6, 8]), min_size=1, max_size=3),
    shares=st.tuples(st.floats(0.01, 0.4), st.floats(0.01, 0.4)),
    size=st.sampled_from([32, 64, 128]),
    columns=st.integers(1, 40).map(lambda count: 32 * count),
    out=st.integers(1, 100),
)
def test_any_rung_fills_the_row(bits: set[int], shares: tuple[float, float], size: int, columns: int, out: int) -> None:
    falling = sorted(bits, reverse=True)
    given = (*shares[: len(falling) - 1], 1 - sum(shares[: len(falling) - 1]))
    rung = Rung(tuple(zip(falling, given, strict=True)), size)
    groups = rung.groups(columns)
    assert sum(count for _, count in groups) == columns
    assert all(count == size for _, count in groups[:-1])
    assert 0 < groups[-1][1] <= size
    assert all(before >= after for (before, _), (after, _) in pairwise(groups))
    assert [width for width, count in groups for _ in range(count)] == oracle.widths(rung.widths, size, columns)
    assert stored_bits(groups, out) == oracle.stored_bits(groups, out)


@pytest.mark.parametrize(
    ("rung", "columns", "groups"),
    [
        (Rung(((2, 1.0),), 128), 96, ((2, 96),)),
        (Rung(((3, 0.1), (2, 0.9)), 64), 160, ((3, 64), (2, 64), (2, 32))),
        (Rung(((3, 0.35), (2, 0.65)), 64), 576, (*[(3, 64)] * 4, *[(2, 64)] * 5)),
        (Rung(((8, 0.5), (6, 0.5)), 128), 64, ((8, 64),)),
    ],
)
def test_groups_by_hand(rung: Rung, columns: int, groups: tuple[tuple[int, int], ...]) -> None:
    assert rung.groups(columns) == groups


def test_a_size_by_hand() -> None:
    """Of 96 columns and 10 rows: 64 at 3 bits, 32 at 2 bits."""
    assert stored_bits(((3, 64), (2, 32)), 10) == 64 * 30 + 32 * 20 + 2 * (40 + 16 + 32) + 96 * 32


@pytest.mark.parametrize("columns", range(32, 1025, 32))
def test_the_ladder_rises(columns: int) -> None:
    """On short rows neighbouring rungs may be the same, but none is larger than the next."""
    sizes = [stored_bits(rung.groups(columns), 1024) for rung in LADDER]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes) or columns < 320


def test_rungs_can_be_told_apart() -> None:
    assert len({str(rung) for rung in LADDER}) == len(LADDER)
    assert str(Rung(((3, 0.1), (2, 0.9)), 64)) == "0.1:3b/0.9:2b-g64"


@pytest.mark.parametrize("bits", [6, 8])
def test_the_head_has_one_width(bits: int) -> None:
    assert head_rung(bits).groups(576) == (*[(bits, 128)] * 4, (bits, 64))


def test_every_rung_keeps_the_readers_rules() -> None:
    """Groups are whole times 32 columns, and so the kernels can read them; widths fall."""
    for rung in RUNGS:
        assert rung.group_size % 32 == 0
        assert sum(share for _, share in rung.widths) == pytest.approx(1.0)
        assert all(before > after for (before, _), (after, _) in pairwise(rung.widths))
        assert {bits for bits, _ in rung.widths} <= {2, 3, 4, 5, 6, 8}


def test_a_budget_is_of_the_number_as_it_is_written() -> None:
    # The nearest binary fractions lie below.
    assert bit_budget(2.3, 10**18) == 23 * 10**17
    assert bit_budget(4.1, 10**18) == 41 * 10**17
    assert bit_budget(4.65, 3) == 13
