"""The choices that EXL2 has for a linear layer, from two bits to eight.

Between two widths lie mixtures: the columns that matter most get the better width. Each rung is one way to divide the
columns, whatever the layer's shape, so that one measurement serves every target size.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Final

Groups = tuple[tuple[int, int], ...]
"""Bits of a code and number of columns of each group, as they are stored."""


@dataclass(frozen=True)
class Rung:
    """One way to store a linear layer: falling widths, each for a share of the columns, in groups of one size."""

    widths: tuple[tuple[int, float], ...]
    """Bits and share of the columns; the last width takes what is left."""
    group_size: int

    def __str__(self) -> str:
        return "/".join(f"{share:g}:{bits}b" for bits, share in self.widths) + f"-g{self.group_size}"

    @property
    def mean_bits(self) -> float:
        """Bits of a code, on average over the columns."""
        *first, (last, _) = self.widths
        return last + sum(share * (bits - last) for bits, share in first)

    def groups(self, columns: int) -> Groups:
        """The groups of a row of so many columns; the last may be short.

        A share is rounded up to whole groups, as the format's own converter does.
        """
        found: list[tuple[int, int]] = []
        left = columns
        for bits, share in self.widths:
            last = bits == self.widths[-1][0]
            for _ in range(ceil((left if last else min(columns * share, left)) / self.group_size)):
                found.append((bits, min(self.group_size, left)))
                left -= found[-1][1]
        return tuple(found)


def stored_bits(groups: Groups, out: int) -> int:
    """Bits that a layer of `out` rows takes: codes, scale indices, largest scales, group table and order.

    As exllamav2 counts them, that is without the rows that pad `out` to a multiple of 32.
    """
    columns = sum(size for _, size in groups)
    codes = sum(bits * size for bits, size in groups) * out
    return codes + len(groups) * (4 * out + 16 + 32) + 32 * columns


def bit_budget(bpw: float, weights: int) -> int:
    """Bits that so many weights may take at `bpw` bits each."""
    # As the number is written: the binary fraction nearest to 4.65 could round the product to either side.
    return int(Fraction(str(bpw)) * weights)


def _rung(*widths: tuple[int, float], group_size: int) -> Rung:
    return Rung(widths, group_size)


LADDER: Final[tuple[Rung, ...]] = (
    _rung((2, 1.0), group_size=128),
    _rung((2, 1.0), group_size=64),
    _rung((3, 0.1), (2, 0.9), group_size=64),
    _rung((3, 0.35), (2, 0.65), group_size=64),
    _rung((3, 1.0), group_size=128),
    _rung((3, 1.0), group_size=32),
    _rung((4, 0.1), (3, 0.9), group_size=64),
    _rung((4, 0.4), (3, 0.6), group_size=64),
    _rung((4, 1.0), group_size=128),
    _rung((4, 1.0), group_size=32),
    _rung((5, 0.1), (4, 0.9), group_size=64),
    _rung((5, 1.0), group_size=128),
    _rung((6, 0.1), (5, 0.9), group_size=64),
    _rung((6, 1.0), group_size=128),
    _rung((8, 0.1), (6, 0.9), group_size=128),
    _rung((8, 0.5), (6, 0.5), group_size=128),
    _rung((8, 1.0), group_size=128),
)
"""By size."""


def head_rung(bits: int) -> Rung:
    """How the head is stored: one width, as the format's own converter does it."""
    return _rung((bits, 1.0), group_size=128)
