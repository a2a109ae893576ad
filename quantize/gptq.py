"""Rounding with error feedback (GPTQ, Frantar et al. 2022), for every format of integer codes on a grid.

`static` searches every group's grid on the original weights and rounds the most active columns first: the artifact
looks as if they had been rounded from left to right, and costs nothing at inference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .factor import Factor
from .grid import Grid, search
from .result import MixedLinear, QuantizedLinear
from .spec import LinearRecipe
from .sweep import Levels, sweep

Linear = TypeVar("Linear", QuantizedLinear, MixedLinear)


@dataclass(frozen=True)
class Rounded(Generic[Linear]):
    """A rounded weight, and what the rounding cost."""

    linear: Linear
    losses: Tensor  # (out,): e H eᵀ of each row's error e, with the damped H of the factor


def rounded(
    weight: Tensor,  # (out, in) float32
    factor: Factor,
    recipe: LinearRecipe,
) -> Rounded[QuantizedLinear]:
    """Round a weight, or several that share an input, joined by their rows.

    Args:
        factor: of the input, in the recipe's order.

    Raises:
        HermetiqError: a weight is beyond what a float16 scale can express.
    """
    columns = weight.shape[1]
    group_size = recipe.group_size or columns
    side_by_side = torch.arange(columns, device=weight.device) // group_size
    grids: list[Grid] = []
    if recipe.order == "static":
        group_of = side_by_side
        grids.append(search(weight, factor.sensitivity, recipe, group_size))
        levels = _fixed(grids[0], group_of[factor.order], recipe)
    else:
        # Groups are filled in the order of rounding, each with a grid for what its columns have become by then.
        group_of = torch.empty_like(side_by_side)
        group_of[factor.order] = side_by_side
        levels = _fresh(grids, factor.sensitivity[factor.order], recipe, group_size)
    swept = sweep(weight, factor, levels)
    linear = QuantizedLinear(
        codes=swept.codes,
        scales=torch.cat([grid.scales for grid in grids]).half(),
        zeros=torch.cat([grid.zeros for grid in grids]).to(torch.uint8),
        group_of=group_of.to(torch.int32),
        bits=recipe.bits,
    )
    return Rounded(linear, swept.losses)


def _fixed(
    grid: Grid,
    group_of: Tensor,  # (in,) in the order of rounding
    recipe: LinearRecipe,
) -> Callable[[int, Tensor], Levels]:
    top, groups = _top(recipe, grid.scales), group_of.tolist()
    levels = [Levels(scale, zero, top) for scale, zero in zip(grid.scales.unbind(), grid.zeros.unbind(), strict=True)]
    return lambda column, _: levels[groups[column]]


def _fresh(
    grids: list[Grid],
    sensitivity: Tensor,  # (in,) in the order of rounding
    recipe: LinearRecipe,
    group_size: int,
) -> Callable[[int, Tensor], Levels]:
    """Searches each group's grid when its first column's turn comes, and adds it to `grids`."""
    top = _top(recipe, sensitivity)

    def levels(column: int, left: Tensor) -> Levels:
        if column % group_size == 0:
            group = slice(column, column + group_size)
            grids.append(search(left[group].T.contiguous(), sensitivity[group], recipe, group_size))
        return Levels(grids[-1].scales[0], grids[-1].zeros[0], top)

    return levels


def _top(recipe: LinearRecipe, like: Tensor) -> Tensor:
    return like.new_tensor(recipe.levels - 1)


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
