"""What calibration saw of one input: the one thing that every format's solver is fed from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Sums over all calibration tokens of one linear layer's input; layers that share an input share this object."""

    gram: Tensor  # (in, in) float32: sum of x xᵀ, where the first token of a row may count several times
    max_abs: float
    """Largest |x| of all."""
    tokens: int

    @property
    def importance(self) -> Tensor:  # (in,)
        """Mean square of each column: llama.cpp's importance matrix, from the diagonal of the shared Gram matrix."""
        return self.gram.diagonal() / self.tokens
