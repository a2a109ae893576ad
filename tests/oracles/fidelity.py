"""`verify.fidelity.compare` once more, token by token in numpy's float64, straight from the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """What the definitions give; ends as (log-probability, rank)."""

    kl: list[float]
    nll_source: list[float]
    nll_artifact: list[float]
    same_choice: list[bool]
    ends_source: list[tuple[float, int]]
    ends_artifact: list[tuple[float, int]]


def compare(
    rows: Sequence[Sequence[int]],
    source: Sequence[Matrix],  # logits of each row, (tokens, vocabulary)
    artifact: Sequence[Matrix],
    ends: Sequence[tuple[int, int]],
    terminator: int,
) -> Figures:
    """Every figure, for logits after each token."""
    kl, nll_source, nll_artifact, same_choice = [], [], [], []
    for row, before, after in zip(rows, source, artifact, strict=True):
        for position, following in enumerate(row[1:]):
            p, q = _probabilities(before[position]), _probabilities(after[position])
            kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            nll_source.append(-math.log(p[following]))
            nll_artifact.append(-math.log(q[following]))
            same_choice.append(p.index(max(p)) == q.index(max(q)))
    return Figures(
        kl,
        nll_source,
        nll_artifact,
        same_choice,
        [_end(source[row][position], terminator) for row, position in ends],
        [_end(artifact[row][position], terminator) for row, position in ends],
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Between the two neighbours in order, in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _end(logits: Matrix, terminator: int) -> tuple[float, int]:
    p = _probabilities(logits)
    return math.log(p[terminator]), sorted(p, reverse=True).index(p[terminator]) + 1


def _probabilities(logits: Matrix) -> list[float]:
    weights = [math.exp(value) for value in logits - logits.max()]
    return [weight / sum(weights) for weight in weights]
