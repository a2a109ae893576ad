"""What solvers make of linear layers, and the only things that cross from solvers to formats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizedLinear:
    """Integer codes on a grid for each row and group of input columns: `W = scales * (codes - zeros)`."""

    codes: Tensor  # (out, in) uint8
    scales: Tensor  # (groups, out) float16
    zeros: Tensor  # (groups, out) uint8
    group_of: Tensor  # (in,) int32: the group of each input column
    bits: int

    @property
    def tops(self) -> list[int]:
        """Largest code of each group."""
        return [(1 << self.bits) - 1] * len(self.scales)

    def dequantize(self) -> Tensor:  # (out, in) float32
        """The weights as a reader that computes in float32 has them."""
        group = self.group_of.long()
        levels = self.codes.to(torch.float32) - self.zeros.to(torch.float32)[group].T
        return self.scales.to(torch.float32)[group].T * levels


@dataclass(frozen=True)
class MixedLinear:
    """EXL2: columns in an order of their own, in groups that have each its width and, per row, a 4-bit scale index.

    `W = (code - 2^(bits-1)) * ((index + 1)^2 * (scale_max / 256))`, all in float16 as its one reader computes it.
    """

    codes: Tensor  # (out, in) uint8, in the columns' own order
    indices: Tensor  # (groups, out) uint8, 0 to 15
    scale_max: Tensor  # (groups,) float16
    order: Tensor  # (in,) int32: the column that is stored first, second, …
    groups: tuple[tuple[int, int], ...]
    """Bits of a code and number of columns of each group, as they are stored; bits never rise."""

    @property
    def group_of(self) -> Tensor:  # (in,) int64
        """The group of each column, in the columns' own order."""
        sizes = torch.tensor([columns for _, columns in self.groups], device=self.order.device)
        stored = torch.repeat_interleave(torch.arange(len(self.groups), device=self.order.device), sizes)
        return torch.empty_like(stored).scatter_(0, self.order.long(), stored)

    @property
    def tops(self) -> list[int]:
        """Largest code of each group."""
        return [(1 << bits) - 1 for bits, _ in self.groups]

    @property
    def scales(self) -> Tensor:  # (groups, out) float16
        """The step between two codes: the reader squares the index exactly and rounds both products to float16."""
        largest = (self.scale_max.float() / 256).half().float()
        return ((self.indices.float() + 1).square() * largest[:, None]).half()

    def dequantize(self) -> Tensor:  # (out, in) float32, each a float16 value
        """The weights as the reader reconstructs them."""
        group = self.group_of
        middles = torch.tensor([1 << (bits - 1) for bits, _ in self.groups], device=group.device)
        levels = self.codes.float() - middles[group]
        return (self.scales.float()[group].T * levels).half().float()
