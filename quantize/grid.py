"""Grids of integer codes: where a group's scale and zero-point come from.

The range of a group is the wrong scale at four bits: a little clipping of the largest weight buys finer steps for all.
So a few shrunken ranges are tried and the one with the least weighted error is kept. Weights are taken a few rows at a
time, so that the trials run in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hermetiq.errors import HermetiqError

from .spec import LinearRecipe

_SHRINK: dict[int, tuple[float, ...]] = {
    2: (1.0, 0.92, 0.84, 0.77, 0.7, 0.63, 0.56, 0.5, 0.44),
    3: (1.03, 0.96, 0.9, 0.84, 0.78, 0.72, 0.66, 0.6),
    4: (1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    8: (1.005, 1.0, 0.99, 0.98),
}
"""Shares of the range that are tried, by bits. Finer steps win under 0.5 % of the error (measured with 38)."""
_CACHED_WEIGHTS = 1 << 17
"""Weights looked at together: half a MiB as float32, so that a trial and its intermediates stay in a core's cache."""
_SMALLEST = 2.0**-24
"""Smallest positive float16: the scale of a group that holds nothing but zeros."""


@dataclass(frozen=True)
class Grid:
    """Scale and zero-point of some groups, for every row."""

    scales: Tensor  # (groups, out) float32, each a float16 value; negative where that puts the longer side to use
    zeros: Tensor  # (groups, out) float32, whole numbers


def search(
    weight: Tensor,  # (out, columns), whole groups
    sensitivity: Tensor,  # (columns,)
    recipe: LinearRecipe,
    group_size: int,
) -> Grid:
    """The grid of each row and group with the least error among the shrunken ranges, weighted by `sensitivity`.

    Raises:
        HermetiqError: a weight is beyond what a float16 scale can express.
    """
    rows, columns = weight.shape
    step = max(1, _CACHED_WEIGHTS // columns)
    costs = sensitivity.view(-1, group_size)
    choose = _symmetric if recipe.symmetric else _asymmetric
    parts = [
        choose(weight[start : start + step].reshape(-1, columns // group_size, group_size), costs, recipe)
        for start in range(0, rows, step)
    ]
    grid = Grid(*(torch.cat(list(part)).T.contiguous() for part in zip(*parts, strict=True)))
    if not bool(grid.scales.isfinite().all()):
        raise HermetiqError("a weight is too large for a float16 scale", remedy="a GGUF type holds it: gguf:Q8_0")
    return grid


def _symmetric(
    groups: Tensor,  # (rows, groups, group_size)
    costs: Tensor,  # (groups, group_size)
    recipe: LinearRecipe,
) -> tuple[Tensor, Tensor]:  # each (rows, groups)
    """The zero-point is the middle, which leaves one more code below than above: the scale's sign gives it to the
    side with the largest weight, as in llama.cpp's Q4_0. Readers only multiply by the scale."""
    middle = recipe.levels // 2
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]
    best, chosen = torch.full_like(largest, torch.inf), torch.full_like(largest, torch.inf)
    for share in _SHRINK[recipe.bits]:
        scale = _stored(largest * (-share / middle))
        codes = (groups / scale[..., None]).round_().clamp_(-middle, middle - 1)
        error = _error(codes.mul_(scale[..., None]), groups, costs)
        chosen = torch.where(error < best, scale, chosen)
        best = torch.minimum(error, best)
    return chosen, torch.full_like(chosen, middle)


def _asymmetric(
    groups: Tensor,  # (rows, groups, group_size)
    costs: Tensor,  # (groups, group_size)
    recipe: LinearRecipe,
) -> tuple[Tensor, Tensor]:  # each (rows, groups)
    """The zero-point is a code, so the range always holds zero."""
    top = recipe.levels - 1
    low, high = groups.amin(-1).clamp_(max=0.0), groups.amax(-1).clamp_(min=0.0)
    best = torch.full_like(low, torch.inf)
    chosen, zeros = torch.full_like(low, torch.inf), torch.zeros_like(low)
    for share in _SHRINK[recipe.bits]:
        scale = _stored((high - low) * (share / top))
        zero = (low * -share / scale).round_().clamp_(recipe.zero_offset, top)
        codes = (groups / scale[..., None]).round_().add_(zero[..., None]).clamp_(0, top)
        error = _error(codes.sub_(zero[..., None]).mul_(scale[..., None]), groups, costs)
        better = error < best
        chosen, zeros = torch.where(better, scale, chosen), torch.where(better, zero, zeros)
        best = torch.minimum(error, best)
    return chosen, zeros


def _stored(scale: Tensor) -> Tensor:
    """A scale as it will be stored: float16, and never zero."""
    stored = scale.half().float()
    return torch.where(stored == 0.0, _SMALLEST, stored)


def _error(rounded: Tensor, groups: Tensor, costs: Tensor) -> Tensor:  # (rows, groups)
    return rounded.sub_(groups).square_().mul_(costs).sum(-1)
