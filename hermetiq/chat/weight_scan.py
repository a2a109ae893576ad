"""One look at each tensor for all rules that read weights, so that a checkpoint is read once, as fast as the disk can.

Two threads look at a tensor each: while one waits for the disk, the other computes. A tensor is a window on its mapped
file that is dropped after the look, so memory stays at two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.finite import Extent, extent
from hermetiq.errors import Refusal
from hermetiq.model import EMBEDDING, HEAD

_THREADS: Final = 2
_CHUNK: Final = 1 << 18
"""Values converted to float32 at once: they stay in the cache."""


@dataclass(frozen=True)
class UsualRow:
    """What the rows of a matrix have in common, to judge one of them by."""

    mean: Tensor  # (hidden,)
    norm: float
    """Mean norm of a row."""
    spread: float
    """Mean distance of a row from the mean row; a mean of squares would follow one broken row."""
    first_column: Tensor  # (rows,)


@dataclass(frozen=True)
class Look:
    """What is remembered of a tensor."""

    extent: Extent
    usual: UsualRow | None
    """Of the matrices with a row for each token."""


class WeightScan:
    """The looks at one checkpoint's tensors, each taken when it is first asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._looks: dict[str, Look] = {}

    def look(self, name: str) -> Look:
        """What one tensor shows.

        Raises:
            Refusal: `source-incomplete`, its bytes cannot be read.
        """
        if name not in self._looks:
            tensor = self._checkpoint.load(name)
            usual = usual_row(tensor) if name in (EMBEDDING, HEAD) and tensor.numel() else None
            self._looks[name] = Look(extent(tensor), usual)
        return self._looks[name]

    def every(self) -> Iterator[tuple[str, Look | Refusal]]:
        """All tensors in file order, or why one cannot be read."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="scan") as pool:
            yield from pool.map(partial(_outcome, self), self._checkpoint.tensors)


def _outcome(scan: WeightScan, name: str) -> tuple[str, Look | Refusal]:
    try:
        return name, scan.look(name)
    except Refusal as refusal:
        return name, refusal


def usual_row(
    weight: Tensor,  # (rows, hidden)
) -> UsualRow:
    """Two passes in float32, a few rows at a time; the sums over all rows in float64."""
    count, hidden = weight.shape
    parts = torch.split(weight, max(1, _CHUNK // hidden))
    total, norms, distances = torch.zeros(hidden, dtype=torch.float64), 0.0, 0.0
    for part in parts:
        values = part.float()
        total += values.sum(0)
        norms += float(torch.linalg.vector_norm(values, dim=1).double().sum())
    mean = (total / count).float()
    for part in parts:
        distances += float(torch.linalg.vector_norm(part.float() - mean, dim=1).double().sum())
    return UsualRow(mean, norms / count, distances / count, weight[:, 0].clone())
