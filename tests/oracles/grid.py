"""Grids of codes by trying everything: each code for a weight, each share of the range for a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A grid for one group of one row, and its weighted squared error."""

    scale: float
    zero: int
    error: float


def points(scale: float, zero: int, bits: int) -> Floats:  # (codes,)
    """The value of every code."""
    return scale * (np.arange(1 << bits, dtype=np.float64) - zero)


def nearest(
    weights: Floats,  # (n,)
    scale: float,
    zero: int,
    bits: int,
) -> Floats:  # (n,)
    """The closest value on the grid, by looking at all of them."""
    grid = points(scale, zero, bits)
    return grid[np.abs(weights[:, None] - grid).argmin(1)]


def error(weights: Floats, costs: Floats, scale: float, zero: int, bits: int) -> float:
    return float((costs * (nearest(weights, scale, zero, bits) - weights) ** 2).sum())


def best(
    weights: Floats,  # (n,)
    costs: Floats,  # (n,)
    shares: Sequence[float],
    bits: int,
    *,
    symmetric: bool,
    smallest_zero: int,
) -> Choice:
    """The grid with the least error of those that `shares` of the range make."""
    ranges = _symmetric if symmetric else _asymmetric
    tried = [
        Choice(scale, zero, error(weights, costs, scale, zero, bits))
        for share in shares
        for scale, zero in ranges(weights, share, bits, smallest_zero)
    ]
    return min(tried, key=lambda choice: choice.error)


def _symmetric(weights: Floats, share: float, bits: int, smallest_zero: int) -> Iterator[tuple[float, int]]:
    """The middle code is zero. The weight furthest from it takes the lowest code, below which there is one more."""
    middle = 1 << bits - 1
    furthest = max(weights, key=abs)
    yield _stored(share * furthest / -middle), middle


def _asymmetric(weights: Floats, share: float, bits: int, smallest_zero: int) -> Iterator[tuple[float, int]]:
    low, high, top = min(weights.min(), 0.0), max(weights.max(), 0.0), (1 << bits) - 1
    scale = _stored(share * (high - low) / top)
    yield scale, min(max(round(-share * low / scale), smallest_zero), top)


def _stored(scale: float) -> float:
    """As float16 holds it; its smallest positive number where that is zero."""
    return float(np.float16(scale)) or 2.0**-24
