"""Quantized layers with every code, for the packers' tests."""

from __future__ import annotations

import torch

from hermetiq.quantize.ladder import Groups
from hermetiq.quantize.result import MixedLinear, QuantizedLinear
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


def mixed(shape: tuple[int, int], groups: Groups, *, seed: int = 0) -> MixedLinear:
    """A layer of (out, in) in groups of several widths: random codes, scale indices, largest scales and order."""
    generator = torch.Generator().manual_seed(seed)
    height, width = shape
    order = torch.randperm(width, generator=generator)
    stored = [torch.randint(0, 1 << bits, (height, size), generator=generator) for bits, size in groups]
    codes = torch.empty(shape, dtype=torch.uint8)
    codes[:, order] = torch.cat(stored, 1).to(torch.uint8)
    return MixedLinear(
        codes=codes,
        indices=torch.randint(0, 16, (len(groups), height), generator=generator).to(torch.uint8),
        # As small as real ones, so that a 256th of it is a subnormal number.
        scale_max=(0.01 * torch.randn(len(groups), generator=generator)).half(),
        order=order.to(torch.int32),
        groups=groups,
    )
