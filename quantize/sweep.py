"""The sweep of GPTQ (Frantar et al. 2022, algorithm 1), whatever the columns are rounded to.

Columns are rounded one after another, and what each loses is made up for by the columns not yet rounded, as far as the
calibration inputs allow. Formats differ only in the levels that a column has when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .factor import Factor

_BLOCK = 32
"""Columns between two updates of all columns behind them: inside, updates are small and stay in the cache."""


@dataclass(frozen=True)
class Levels:
    """What the weights of one column are rounded to: `scale * (code - zero)`, the codes from 0 to `top`."""

    scale: Tensor  # (out,)
    zero: Tensor  # (out,) float32, whole numbers
    top: Tensor  # (out,) or one for all, float32


@dataclass(frozen=True)
class Swept:
    """Codes, and what they cost."""

    codes: Tensor  # (out, in) uint8, in the columns' own order
    losses: Tensor  # (out,): e H eᵀ of each row's error e, with the damped H of the factor


def sweep(
    weight: Tensor,  # (out, in) float32
    factor: Factor,
    levels: Callable[[int, Tensor], Levels],
) -> Swept:
    """Round all columns in the factor's order.

    Args:
        levels: of the column whose place in that order is given. It may also look at all columns as they are by then,
            (in, out) in that order.
    """
    rows, columns = weight.shape
    sensitivity = factor.upper.diagonal() ** -2
    upper = factor.upper / factor.upper.diagonal()[:, None]
    # Transposed, a column is contiguous. What is not yet rounded holds the feedback of all that is.
    left = weight.T[factor.order].contiguous()
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    losses = torch.zeros(rows, device=weight.device)
    lowest = torch.zeros((), device=weight.device)
    left_of, codes_of = left.unbind(), codes.unbind()
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.empty(end - start, rows, device=weight.device)
        for column in range(start, end):
            to = levels(column, left)
            code = (left_of[column] / to.scale).round_().add_(to.zero).clamp_(lowest, to.top)
            codes_of[column].copy_(code)
            error = torch.sub(left_of[column], code.sub_(to.zero).mul_(to.scale), out=errors[column - start])
            left[column + 1 : end].addr_(upper[column, column + 1 : end], error, alpha=-1)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
        losses += sensitivity[start:end] @ errors.square()
    placed = torch.empty_like(codes)
    placed[factor.order] = codes
    return Swept(placed.T.contiguous(), losses)
