"""What a solver makes of a linear layer, and the only thing that crosses from solvers to formats."""

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

    def dequantize(self) -> Tensor:  # (out, in) float32
        """The weights as a reader that computes in float32 has them."""
        group = self.group_of.long()
        levels = self.codes.to(torch.float32) - self.zeros.to(torch.float32)[group].T
        return self.scales.to(torch.float32)[group].T * levels
