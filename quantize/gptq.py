"""Rounding with error feedback (GPTQ, Frantar et al. 2022), for every format of integer codes on a grid.

Columns are rounded one after another, and what each loses is made up for by the columns not yet rounded, as far as the
calibration inputs allow. `static` searches every group's grid on the original weights and rounds the most active
columns first: the artifact looks as if they had been rounded from left to right, and costs nothing at inference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .factor import Factor
from .grid import Grid, search
from .result import QuantizedLinear
from .spec import LinearRecipe

_BLOCK = 32
"""Columns between two updates of all columns behind them: inside, updates are small and stay in the cache."""


@dataclass(frozen=True)
class Rounded:
    """A rounded weight, and what the rounding cost."""

    linear: QuantizedLinear
    losses: Tensor  # (out,): e H eᵀ of each row's error e, with the damped H of the factor


def rounded(
    weight: Tensor,  # (out, in) float32
    factor: Factor,
    recipe: LinearRecipe,
) -> Rounded:
    """Round a weight, or several that share an input, joined by their rows.

    Args:
        factor: of the input, in the recipe's order.

    Raises:
        HermetiqError: a weight is beyond what a float16 scale can express.
    """
    columns = weight.shape[1]
    group_size = recipe.group_size or columns
    side_by_side = torch.arange(columns, device=weight.device) // group_size
    if recipe.order == "static":
        group_of = side_by_side
        grid = search(weight, factor.sensitivity, recipe, group_size)
        swept = _sweep(weight, factor, recipe, group_of[factor.order], grid)
    else:
        # Groups are filled in the order of rounding, each with a grid for what its columns have become by then.
        group_of = torch.empty_like(side_by_side)
        group_of[factor.order] = side_by_side
        swept = _sweep(weight, factor, recipe, side_by_side, None)
    codes = torch.empty_like(swept.codes)
    codes[factor.order] = swept.codes
    linear = QuantizedLinear(
        codes=codes.T.contiguous(),
        scales=swept.grid.scales.half(),
        zeros=swept.grid.zeros.to(torch.uint8),
        group_of=group_of.to(torch.int32),
        bits=recipe.bits,
    )
    return Rounded(linear, swept.losses)


def split(linear: QuantizedLinear, rows: list[int]) -> list[QuantizedLinear]:
    """Undo the joining of weights by their rows."""
    parts = zip(
        torch.split(linear.codes, rows),
        torch.split(linear.scales, rows, dim=1),
        torch.split(linear.zeros, rows, dim=1),
        strict=True,
    )
    return [
        replace(linear, codes=codes, scales=scales.contiguous(), zeros=zeros.contiguous())
        for codes, scales, zeros in parts
    ]


@dataclass(frozen=True)
class _Swept:
    codes: Tensor  # (in, out) uint8, in the order of rounding
    grid: Grid
    losses: Tensor  # (out,)


def _sweep(
    weight: Tensor,  # (out, in)
    factor: Factor,
    recipe: LinearRecipe,
    group_of: Tensor,  # (in,) in the order of rounding
    grid: Grid | None,
) -> _Swept:
    """Round all columns in the factor's order; without a grid, each group gets one when its turn comes."""
    rows, columns = weight.shape
    group_size = recipe.group_size or columns
    sensitivity = factor.upper.diagonal() ** -2
    upper = factor.upper / factor.upper.diagonal()[:, None]
    # Transposed, a column is contiguous. What is not yet rounded holds the feedback of all that is.
    left = weight.T[factor.order].contiguous()
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    losses = torch.zeros(rows, device=weight.device)
    grids: list[Grid] = []
    places = group_of.tolist()
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.empty(end - start, rows, device=weight.device)
        for column in range(start, end):
            if grid is None and column % group_size == 0:
                group = slice(column, column + group_size)
                grids.append(search(left[group].T.contiguous(), sensitivity[group], recipe, group_size))
            scale, zero = _row(grid, places[column]) if grid else _row(grids[-1], 0)
            code = (left[column] / scale).round_().add_(zero).clamp_(0, recipe.levels - 1)
            codes[column] = code
            error = torch.sub(left[column], code.sub_(zero).mul_(scale), out=errors[column - start])
            left[column + 1 : end].addr_(upper[column, column + 1 : end], error, alpha=-1)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
        losses += sensitivity[start:end] @ errors.square()
    if grid is None:
        grid = Grid(torch.cat([item.scales for item in grids]), torch.cat([item.zeros for item in grids]))
    return _Swept(codes, grid, losses)


def _row(grid: Grid, group: int) -> tuple[Tensor, Tensor]:  # each (out,)
    return grid.scales[group], grid.zeros[group]
