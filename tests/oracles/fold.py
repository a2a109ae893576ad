"""The fold that minimises the expected error, found by nothing but evaluating that error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def expected_error(
    factors: Floats,  # (in,)
    sensitivity: Floats,  # (in,)
    energy: Floats,  # (in,): mean square of each column of the weight
) -> float:
    """What rounding costs: sensitivities over squared factors, times the square of a step, as large as the weights."""
    return float((sensitivity / factors**2).sum() * (energy * factors**2).sum())


def least(
    sensitivity: Floats,  # (in,)
    energy: Floats,  # (in,)
) -> Floats:  # (in,), geometric mean 1
    """Try a longer and a shorter factor for one column after another, with ever smaller steps."""
    logs = np.zeros(len(energy))
    step = 1.0
    while step > 1e-7:
        improved = False
        for column in range(len(logs)):
            for change in (step, -step):
                moved = logs.copy()
                moved[column] += change
                if expected_error(np.exp(moved), sensitivity, energy) < expected_error(
                    np.exp(logs), sensitivity, energy
                ):
                    logs, improved = moved, True
        if not improved:
            step /= 2
    return np.exp(logs - logs.mean())
