"""What calibration saw of one input: the one thing that every format's solver is fed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
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

    @property
    def notes(self) -> dict[str, Any]:
        """All but the matrix, as JSON knows it."""
        return {"max_abs": self.max_abs, "tokens": self.tokens}

    @property
    def triangle(self) -> Tensor:  # (in / 2 rounded up, in + 1)
        """The matrix without what symmetry repeats: row i beside row -1 - i, each from the diagonal on."""
        rows = len(self.gram)
        half = self.gram.new_zeros((rows + 1) // 2, rows + 1)
        for row, packed in enumerate(half):
            packed[: rows - row] = self.gram[row, row:]
            packed[rows - row :] = self.gram[rows - 1 - row, rows - 1 - row :]
        return half

    @classmethod
    def restored(
        cls,
        triangle: Tensor,  # (in / 2 rounded up, in + 1)
        notes: Mapping[str, Any],
    ) -> Self:
        """The statistics that `triangle` and `notes` were taken of."""
        rows = triangle.shape[1] - 1
        gram = torch.empty(rows, rows, device=triangle.device)
        for row, packed in enumerate(triangle):
            for at, values in ((row, packed[: rows - row]), (rows - 1 - row, packed[rows - row :])):
                gram[at, at:] = values
                gram[at:, at] = values
        return cls(gram, **notes)
