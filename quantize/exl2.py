"""EXL2's rounding: columns in groups of several widths, scales that share one float16 number and differ by four bits.

The format stores a group's scales as squares, of 1 to 16, times a 256th of the largest: near the top they lie close
together, below they do not. So a row's best scale is seldom to be had, and which ones can be had hangs on the number
that all rows share. Both are chosen by the error they leave: that of each row is computed over a range of scales once,
and every candidate for the shared number is judged by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import torch
from torch import Tensor

from hermetiq.errors import HermetiqError

from .factor import Factor
from .gptq import Rounded
from .ladder import Groups
from .polish import polish
from .result import MixedLinear
from .sweep import Levels, sweep

_NARROWEST: Final = {2: 0.15, 3: 0.3, 4: 0.5, 5: 0.6, 6: 0.7, 8: 0.85}
"""By bits: the smallest scale that is tried, as a share of the one that clips nothing."""
_TRIALS: Final = 12
"""Scales that each row is tried with, from that one to the narrowest, at equal ratios."""
_LARGEST: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6)
"""Candidates for a group's largest scale, as shares of the largest that a row would choose."""
_TOP: Final = 16
"""Largest root of a scale: indices 0 to 15 stand for the squares of 1 to 16."""
_TINIEST: Final = 2.0**-24
"""Smallest positive float16."""
_CACHED_WEIGHTS: Final = 1 << 17
"""Weights looked at together: half a MiB as float32, so that a trial and its intermediates stay in a core's cache."""


@dataclass(frozen=True)
class Part:
    """Rows of a linear layer, and the groups that its columns are stored in."""

    weight: Tensor  # (out, in) float32
    groups: Groups


def stored_order(
    weight: Tensor,  # (out, in), of all layers that share the input
    factor: Factor,
) -> Tensor:  # (in,) int64
    """The columns that matter most first: they get the better widths, and those that share a scale are alike."""
    return torch.argsort(factor.sensitivity * weight.square().mean(0), descending=True, stable=True)


def rounded(
    parts: Sequence[Part],
    factor: Factor,
    order: Tensor,  # (in,)
    hessian: Tensor | None,  # (in, in)
) -> list[Rounded[MixedLinear]]:
    """Round layers that share an input, in one sweep.

    Args:
        factor: of the input.
        order: in which columns are stored.
        hessian: what was factorised, to polish the codes by; without it they stay as the sweep left them.

    Raises:
        HermetiqError: a weight is beyond float16, in which the reader computes.
    """
    grids = [_grid(part, factor.sensitivity, order) for part in parts]
    rows = [len(part.weight) for part in parts]
    swept = sweep(torch.cat([part.weight for part in parts]), factor, _levels(grids, factor.order))
    made = []
    for part, grid, codes, losses in zip(
        parts, grids, torch.split(swept.codes, rows), torch.split(swept.losses, rows), strict=True
    ):
        linear = MixedLinear(codes, grid.indices, grid.scale_max, order.to(torch.int32), part.groups)
        result = Rounded(linear, losses)
        made.append(result if hessian is None else polish(part.weight, result, hessian))
    return made


@dataclass(frozen=True)
class _Grid:
    """The scales of a part."""

    indices: Tensor  # (groups, out) uint8
    scale_max: Tensor  # (groups,) float16
    scales: Tensor  # (in, out) float32, of each column
    tops: Tensor  # (in,) float32, largest code of each column


def _grid(part: Part, sensitivity: Tensor, order: Tensor) -> _Grid:
    """Search the scales of all groups, those of one width and size together."""
    found = [
        search(part.weight[:, columns].view(-1, len(columns) // size, size), sensitivity[columns].view(-1, size), bits)
        for bits, size, columns in _runs(part.groups, order)
    ]
    # The reader takes the 256 off again, which is exact both ways.
    scale_max = (torch.cat([unit for _, unit in found]) * _TOP**2).half()
    empty = part.weight.new_empty((0, len(order)), dtype=torch.uint8)
    linear = MixedLinear(
        empty, torch.cat([index.T for index, _ in found]), scale_max, order.to(torch.int32), part.groups
    )
    group_of, scales = linear.group_of, linear.scales.float()
    tops = torch.tensor(linear.tops, dtype=torch.float32, device=order.device)
    # The reader's products are float16 too, so the lowest code must not reach beyond.
    if not bool((scales * (tops[:, None] + 1) / 2 <= torch.finfo(torch.float16).max).all()):
        raise HermetiqError("a weight is too large for float16", remedy="a GGUF type holds it: gguf:Q8_0")
    return _Grid(linear.indices, scale_max, scales[group_of], tops[group_of])


def _runs(groups: Groups, order: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Neighbouring groups alike: their bits, the size of each, and their columns."""
    first = 0
    for (bits, size), alike in groupby(groups):
        last = first + size * len(list(alike))
        yield bits, size, order[first:last]
        first = last


def _levels(grids: Sequence[_Grid], order: Tensor) -> Callable[[int, Tensor], Levels]:
    """Scale, zero code and top code of every row, for the column in a place of the order of rounding."""
    rows = torch.tensor([grid.scales.shape[1] for grid in grids], device=order.device)
    part_of = torch.repeat_interleave(torch.arange(len(grids), device=order.device), rows)
    scales = torch.cat([grid.scales[order] for grid in grids], 1)
    tops = torch.stack([grid.tops[order] for grid in grids], 1)

    def levels(column: int, _: Tensor) -> Levels:
        top = tops[column][part_of]
        return Levels(scales[column], (top + 1) / 2, top)

    return levels


def search(
    groups: Tensor,  # (out, groups, columns)
    costs: Tensor,  # (groups, columns)
    bits: int,
) -> tuple[Tensor, Tensor]:  # (out, groups) uint8, (groups,) float32
    """The index of each row and group, and the unit of each group: the scale of index i is (i + 1)² units.

    Args:
        costs: of a squared error in each column.
    """
    step = max(1, _CACHED_WEIGHTS // costs.numel())
    chunks = torch.split(groups, step)
    widest = torch.cat([_widest(chunk, bits) for chunk in chunks])
    ratios = torch.logspace(0, 1, _TRIALS, base=_NARROWEST[bits], device=groups.device)
    errors = torch.cat(
        [
            torch.stack([_error(chunk, scale * ratio, costs, bits) for ratio in ratios.tolist()])
            for chunk, scale in zip(chunks, torch.split(widest, step), strict=True)
        ],
        1,
    )
    wanted = widest * ratios[errors.argmin(0)]
    units = [_unit(wanted.amax(0) * share) for share in _LARGEST]
    expected = torch.stack([_expected(errors, widest, wanted, unit, bits).sum(0) for unit in units])
    unit = torch.stack(units).gather(0, expected.argmin(0, keepdim=True))[0]
    index = torch.cat(
        [
            _nearest(chunk, scale, unit, costs, bits)
            for chunk, scale in zip(chunks, torch.split(wanted, step), strict=True)
        ]
    )
    return index, unit


def _widest(groups: Tensor, bits: int) -> Tensor:  # (out, groups)
    """The scale that clips nothing: codes reach one further down than up."""
    middle = 1 << (bits - 1)
    return torch.maximum(groups.amin(-1) / -middle, groups.amax(-1) / (middle - 1)).clamp(min=_TINIEST)


def _unit(largest: Tensor) -> Tensor:
    """What multiplies the squares, as the reader has it: float16, and never zero."""
    return (largest / _TOP**2).half().float().clamp(min=_TINIEST)


def _root(scale: Tensor, unit: Tensor) -> Tensor:
    return (scale / unit).sqrt().clamp(1, _TOP)


def _expected(
    errors: Tensor,  # (trials, out, groups)
    widest: Tensor,  # (out, groups)
    wanted: Tensor,  # (out, groups)
    unit: Tensor,  # (groups,)
    bits: int,
) -> Tensor:  # (out, groups)
    """The error that each row is left with, read off the trials; of the two scales about the wanted one, the better."""
    root = _root(wanted, unit)
    per_trial = torch.tensor(_NARROWEST[bits]).log().item() / (_TRIALS - 1)
    best = torch.full_like(wanted, torch.inf)
    for candidate in (root.floor(), root.ceil()):
        place = (candidate.square() * unit / widest).log() / per_trial
        inside = place.clamp(0, _TRIALS - 1)
        lower = inside.floor().clamp(max=_TRIALS - 2).long()
        ends = [errors.gather(0, at[None])[0] for at in (lower, lower + 1)]
        error = torch.lerp(ends[0], ends[1], inside - lower)
        # Beyond the trials errors grow with the square of the scale, or faster where more and more is clipped.
        best = torch.minimum(best, error * ((place - inside).abs() * -2 * per_trial).exp())
    return best


def _nearest(
    groups: Tensor,  # (out, groups, columns)
    wanted: Tensor,  # (out, groups)
    unit: Tensor,  # (groups,)
    costs: Tensor,  # (groups, columns)
    bits: int,
) -> Tensor:  # (out, groups) uint8
    """The index with the least error among those about the wanted scale."""
    middle = _root(wanted, unit).round()
    best, chosen = torch.full_like(wanted, torch.inf), middle
    for offset in (0, -1, 1):
        root = (middle + offset).clamp(1, _TOP)
        error = _error(groups, (root.square() * unit).half().float(), costs, bits)
        chosen = torch.where(error < best, root, chosen)
        best = torch.minimum(error, best)
    return (chosen - 1).to(torch.uint8)


def _error(
    groups: Tensor,  # (out, groups, columns)
    scale: Tensor,  # (out, groups)
    costs: Tensor,  # (groups, columns)
    bits: int,
) -> Tensor:  # (out, groups)
    middle = 1 << (bits - 1)
    steps = scale[..., None]
    codes = (groups / steps).round_().clamp_(-middle, middle - 1)
    return codes.mul_(steps).sub_(groups).square_().mul_(costs).sum(-1)
