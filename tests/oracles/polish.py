"""Coordinate descent on codes from its definition: try every code of a weight, keep the one of least loss, go on.

No gradient and no blocks: every trial computes e H eᵀ in full, in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def loss(
    row: Floats,  # (in,)
    read: Floats,  # (in,)
    hessian: Floats,  # (in, in)
) -> float:
    """e H eᵀ of a row that is read as `read`."""
    error = read - row
    return float(error @ hessian @ error)


def polished(
    row: Floats,  # (in,)
    codes: Ints,  # (in,)
    scales: Floats,  # (in,)
    zeros: Floats,  # (in,)
    hessian: Floats,  # (in, in)
    bits: int,
) -> tuple[Ints, Floats]:  # (in,), (in,)
    """The codes of one row after one pass from left to right, and how much worse the second best of each column was."""
    codes, margins = codes.copy(), np.empty(len(codes))
    for column in range(len(codes)):
        read = scales * (codes - zeros)
        trials = []
        for code in range(1 << bits):
            read[column] = scales[column] * (code - zeros[column])
            trials.append(loss(row, read, hessian))
        codes[column] = int(np.argmin(trials))
        best, second = sorted(trials)[:2]
        margins[column] = second - best
    return codes, margins
