"""EXL2 a number at a time: the reader's arithmetic, the layout's counts, and scales by trying all there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def steps(largest: float) -> list[float]:
    """What each of the 16 indices stands for, where a group's largest scale is stored as `largest`."""
    unit = np.float16(largest) / np.float16(256)
    return [float(np.float16(root * root) * unit) for root in range(1, 17)]


def read(
    codes: Ints,  # (out, in), in the columns' own order
    indices: Ints,  # (groups, out)
    largest: Floats,  # (groups,)
    order: Sequence[int],
    groups: Sequence[tuple[int, int]],
) -> Floats:  # (out, in)
    """The weights as the reader has them."""
    weights = np.full(codes.shape, np.nan)
    stored = iter(order)
    for group, (bits, size) in enumerate(groups):
        for _ in range(size):
            column = next(stored)
            for row in range(len(codes)):
                step = np.float16(steps(largest[group])[indices[group, row]])
                weights[row, column] = np.float16(int(codes[row, column]) - 2 ** (bits - 1)) * step
    return weights


def errors(
    rows: Floats,  # (out, n)
    costs: Floats,  # (n,)
    step: float,
    bits: int,
) -> Floats:  # (out,)
    """Weighted squared errors of rows of which each weight takes the closest level."""
    levels = np.arange(-(1 << bits - 1), 1 << bits - 1)
    closest = np.clip(np.rint(rows / step), levels[0], levels[-1]) * step
    return ((closest - rows) ** 2) @ costs


def least_errors(
    rows: Floats,  # (out, n)
    costs: Floats,  # (n,)
    largest: float,
    bits: int,
) -> Floats:  # (out,)
    """The error of each row with the best of the 16 indices."""
    return np.min([errors(rows, costs, step, bits) for step in steps(largest)], axis=0)


def least_error(rows: Floats, costs: Floats, candidates: Iterable[float], bits: int) -> float:
    """The error of a group with the best of `candidates` as its largest scale, and the best index for each row."""
    return min(float(least_errors(rows, costs, largest, bits).sum()) for largest in candidates)


def unclipped(
    row: Floats,  # (n,)
    bits: int,
) -> float:
    """The smallest step that every weight of a row can be reached with."""
    lowest, highest = -(1 << bits - 1), (1 << bits - 1) - 1
    return max(max(weight / (lowest if weight < 0 else highest) for weight in row), 0.0)


def by_ratio(step: float, largest: float) -> int:
    """The index whose step has the root nearest to that of `step`."""
    return min(range(16), key=lambda index: abs((index + 1) / 16 - (step / largest) ** 0.5))


def widths(
    shares: Sequence[tuple[int, float]],
    size: int,
    columns: int,
) -> list[int]:  # (columns,)
    """Bits of each column as stored: groups are opened until a width has its share, and the last takes what is left."""
    stored: list[int] = []
    for place, (bits, share) in enumerate(shares):
        mine = 0
        while len(stored) < columns and (place == len(shares) - 1 or mine < share * columns):
            taken = min(size, columns - len(stored))
            stored += [bits] * taken
            mine += taken
    return stored


def stored_bits(groups: Sequence[tuple[int, int]], out: int) -> int:
    """Bits of the tensors of a layer, one number after another."""
    bits = 0
    for width, size in groups:
        bits += 16  # largest scale
        bits += 2 * 16  # the width, and where the codes begin
        bits += out * 4  # scale indices
        for _ in range(size):
            bits += out * width
            bits += 32  # the column's place
    return bits
