"""Quantized layers with every code, for the packers' tests."""

from __future__ import annotations

import torch

from hermetiq.quantize.result import QuantizedLinear
from hermetiq.quantize.spec import LinearRecipe


def quantized(shape: tuple[int, int], recipe: LinearRecipe, *, seed: int = 0) -> QuantizedLinear:
    """A layer of (out, in) on the recipe's grid: random codes, scales and, unless symmetric, zero-points."""
    generator = torch.Generator().manual_seed(seed)
    height, width = shape
    groups, levels = recipe.groups(width), recipe.levels
    group_of = torch.arange(width, dtype=torch.int32) // (width // groups)
    if recipe.order == "actorder":
        group_of = group_of[torch.randperm(width, generator=generator)]
    zeros = torch.randint(recipe.zero_offset, levels, (groups, height), generator=generator)
    return QuantizedLinear(
        codes=torch.randint(0, levels, shape, generator=generator).to(torch.uint8),
        scales=(0.01 + torch.rand((groups, height), generator=generator)).to(torch.float16),
        zeros=(torch.full_like(zeros, levels // 2) if recipe.symmetric else zeros).to(torch.uint8),
        group_of=group_of,
        bits=recipe.bits,
    )
