"""What each rung of EXL2's ladder would cost a layer, before any is chosen.

The error that counts is that of the weight as it would really be rounded, feedback included, weighted by the inputs it
meets. To have it for every rung at the price of one, only a sample of the rows is rounded, on all rungs in one sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from .exl2 import Part, rounded
from .factor import Factor
from .grid import search
from .ladder import Rung
from .spec import LinearRecipe

_SAMPLE: Final = 64
"""Rows of a layer that are rounded. They are the same for every rung, so that rungs compare well."""
_COARSE: Final = LinearRecipe(bits=3, group_size=32, symmetric=True, order="static", zero_offset=0)
"""Rounding that a model of 135M weights takes amiss well above the noise of bfloat16."""


def measure(
    weights: Sequence[Tensor],  # each (out, in)
    factor: Factor,
    order: Tensor,  # (in,)
    ladder: Sequence[Rung],
    counts: Sequence[Tensor] = (),  # each (out,)
) -> list[tuple[float, ...]]:
    """For layers that share an input, the loss on every rung: e H eᵀ summed over the rows, H as in `Factor`.

    The sample stands for all rows by its share of what they would lose if they were rounded to nothing.

    Args:
        counts: by layer, how often the loss of each row counts; once, where they are left out.

    Raises:
        HermetiqError: a weight is beyond float16, in which the reader computes.
    """
    samples = [_sampled(len(weight), order.device) for weight in weights]
    groups = [rung.groups(len(order)) for rung in ladder]
    parts = [Part(weight[sample], each) for weight, sample in zip(weights, samples, strict=True) for each in groups]
    made = iter(rounded(parts, factor, order, None))
    errors = []
    for weight, sample, count in zip(weights, samples, counts or [w.new_ones(len(w)) for w in weights], strict=True):
        sizes = weight.square() @ factor.sensitivity * count
        whole = float(sizes.sum() / sizes[sample].sum()) if sizes[sample].any() else len(sizes) / len(sample)
        errors.append(tuple(whole * float(next(made).losses @ count[sample]) for _ in ladder))
    return errors


def disturbed(
    weight: Tensor,  # (out, in)
) -> Tensor:  # (out, in)
    """The weight rounded to nearest so coarsely that the model's output shows it.

    Raises:
        HermetiqError: a weight is beyond float16.
    """
    size = _COARSE.group_size
    assert size
    grid = search(weight, weight.new_ones(weight.shape[1]), _COARSE, size)
    scales, zeros = (part.T.repeat_interleave(size, 1) for part in (grid.scales, grid.zeros))
    return (weight / scales).round_().add_(zeros).clamp_(0, _COARSE.levels - 1).sub_(zeros).mul_(scales)


def _sampled(rows: int, device: torch.device) -> Tensor:
    """Indices of rows spread over all of them."""
    count = min(rows, _SAMPLE)
    return torch.arange(count, device=device) * rows // count
