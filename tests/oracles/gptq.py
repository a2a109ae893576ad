"""GPTQ from the text of the paper (Frantar et al. 2022, sections 3.1 and 3.2), a column at a time in float64.

No Cholesky and no blocks: the inverse Hessian itself is kept, and a rounded column is eliminated from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def damped(
    gram: Floats,  # (in, in)
    damping: float,
) -> Floats:  # (in, in)
    """The Hessian: a share of the mean diagonal is added to the diagonal (section 3.3, step 3)."""
    return gram + damping * gram.diagonal().mean() * np.eye(len(gram))


def most_active_first(gram: Floats) -> list[int]:
    return sorted(range(len(gram)), key=lambda column: -gram[column, column])


def sweep(
    weight: Floats,  # (out, in)
    hessian: Floats,  # (in, in)
    order: Sequence[int],
    rounded: Callable[[int, Floats], Floats],
) -> Floats:  # (out, in)
    """Round columns in `order`; what each had become when its turn came.

    Args:
        rounded: of a column and all weights as they are by then, the column's values on its grid (out,).
    """
    left, inverse = weight.copy(), np.linalg.inv(hessian)
    seen = np.empty_like(weight)
    for column in order:
        seen[:, column] = left[:, column]
        # Equation 2: the error, over its place on the diagonal, times the row of the inverse.
        error = (left[:, column] - rounded(column, left)) / inverse[column, column]
        left -= np.outer(error, inverse[column])
        # Equation 3: Gaussian elimination of the column from the inverse.
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return seen


def conditional_variance(
    hessian: Floats,  # (in, in)
    order: Sequence[int],
) -> Floats:  # (in,), in the columns' own order
    """What is left of each column's second moment when the columns that come later in `order` explain what they can."""
    variance = np.empty(len(hessian))
    for place, column in enumerate(order):
        later = list(order[place + 1 :])
        explained = hessian[column, later] @ np.linalg.solve(hessian[np.ix_(later, later)], hessian[later, column])
        variance[column] = hessian[column, column] - explained
    return variance
