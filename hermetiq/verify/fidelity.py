"""How far the artifact's next-token distribution has moved from the source's, on chats neither was tuned on.

Perplexity alone hides damage: two models can be equally surprised by a text and yet prefer other words, and one token,
the terminator, decides whether a chat works at all. So the whole distributions are compared at every token (KL
divergence, as `llama-perplexity --kl-divergence` does), and the terminator is followed where assistant turns end.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 64
"""Tokens whose distributions are held at a time: with 150,000 rows they and what is made of them take 400 MB."""

_LARGEST_EXPONENT = math.log(sys.float_info.max)

Logits = Callable[[Tensor], Tensor]
"""The head: states (tokens, hidden) to logits (tokens, vocabulary)."""
Row = tuple[Sequence[int], Tensor]
"""Token ids of one chat (tokens,) and its final states (tokens, hidden)."""


@dataclass(frozen=True)
class Readiness:
    """How ready a model was to say the terminator where an assistant turn ends; rank 1 is its first choice."""

    row: int
    position: int
    """Of the last token before the terminator."""
    logprob: float
    rank: int


@dataclass(frozen=True)
class Fidelity:
    """Source against artifact over all tokens of the held-out chats; KL and log-probabilities in nats."""

    tokens: int
    kl_mean: float
    kl_p99: float
    perplexity_source: float
    perplexity_artifact: float
    top1_agreement: float
    """Share of tokens, 0 to 1, where both have the same first choice."""
    source_ends: tuple[Readiness, ...]
    artifact_ends: tuple[Readiness, ...]
    """The same turn ends in the same order."""

    @property
    def worst_end(self) -> int:
        """Index of the turn end that lost most log-probability."""
        drops = [
            before.logprob - after.logprob for before, after in zip(self.source_ends, self.artifact_ends, strict=True)
        ]
        return int(np.argmax(drops))


@dataclass(frozen=True)
class _Chunk:
    """Figures of one stretch of tokens, each (tokens,)."""

    kl: Tensor
    source_nll: Tensor
    artifact_nll: Tensor
    same_choice: Tensor


def compare(
    source: Sequence[Row],
    artifact: Sequence[Row],
    *,
    source_logits: Logits,
    artifact_logits: Logits,
    ends: Sequence[tuple[int, int]],  # (row, position of the last token before the terminator)
    terminator: int,
) -> Fidelity:
    """Compare two models that have read the same rows.

    Every token but a row's last predicts the next one and is counted. Logits are float32 and sums float64; equal models
    give exactly zero, and rounding stays below 1e-6. An artifact with NaN in it gets NaN for every figure it touches.
    """
    chunks = [
        _compare_chunk(source_logits(before), artifact_logits(after), targets)
        for before, after, targets in _stretches(source, artifact)
    ]
    kl = torch.cat([chunk.kl for chunk in chunks])
    return Fidelity(
        tokens=len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(kl.quantile(0.99)),
        perplexity_source=_perplexity(torch.cat([chunk.source_nll for chunk in chunks])),
        perplexity_artifact=_perplexity(torch.cat([chunk.artifact_nll for chunk in chunks])),
        top1_agreement=float(torch.cat([chunk.same_choice for chunk in chunks]).double().mean()),
        source_ends=turn_ends_of(source, source_logits, ends, terminator),
        artifact_ends=turn_ends_of(artifact, artifact_logits, ends, terminator),
    )


def logprobs(logits: Tensor) -> Tensor:
    """Natural-log probabilities in float64, of the same shape (tokens, vocabulary)."""
    return torch.log_softmax(logits.double(), dim=-1)


def turn_ends_of(
    rows: Sequence[Row], logits: Logits, ends: Sequence[tuple[int, int]], terminator: int
) -> tuple[Readiness, ...]:
    """The terminator's log-probability and rank at each of `ends`."""
    found = []
    for start in range(0, len(ends), CHUNK):
        places = ends[start : start + CHUNK]
        states = torch.stack([rows[row][1][position] for row, position in places])
        table = logprobs(logits(states))
        values = table[:, terminator]
        # Counted by what is not smaller, itself included: among ties and among NaN the terminator comes last.
        ranks = (~(table < values[:, None])).sum(dim=1)
        found += [
            Readiness(row, position, float(value), int(rank))
            for (row, position), value, rank in zip(places, values, ranks, strict=True)
        ]
    return tuple(found)


def _stretches(source: Sequence[Row], artifact: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """States of both (tokens, hidden) and the tokens that follow them (tokens,), `CHUNK` at a time."""
    for (tokens, before), (others, after) in zip(source, artifact, strict=True):
        if list(tokens) != list(others):
            raise ValueError("the two models have read different rows")
        targets = torch.as_tensor(tokens)[1:]
        for start in range(0, len(targets), CHUNK):
            part = slice(start, min(start + CHUNK, len(targets)))
            yield before[part], after[part], targets[part]


def _compare_chunk(source: Tensor, artifact: Tensor, targets: Tensor) -> _Chunk:
    """Figures for logits of both (tokens, vocabulary) and the tokens that came (tokens,)."""
    before, after, following = _Distribution(source), _Distribution(artifact), targets[:, None]
    moved = (before.weights * (before.logits - after.logits)).sum(dim=1).double() / before.total
    return _Chunk(
        # Rounding may take it below zero; NaN stays NaN.
        kl=(moved - before.total.log() + after.total.log()).clamp(min=0),
        source_nll=before.nll(following),
        artifact_nll=after.nll(following),
        same_choice=before.choice == after.choice,
    )


class _Distribution:
    """Softmax of logits (tokens, vocabulary) kept as its parts: two tables of float32 in place of four of float64."""

    def __init__(self, logits: Tensor) -> None:
        largest, self.choice = logits.max(dim=1)
        self.logits = logits - largest[:, None]
        """Less the largest, which leaves the distribution as it is."""
        self.weights = self.logits.exp()
        self.total = self.weights.sum(dim=1).double()

    def nll(self, following: Tensor) -> Tensor:
        """Minus the log-probability of one token each: `following` is (tokens, 1), the result (tokens,)."""
        return self.total.log() - self.logits.gather(1, following)[:, 0].double()


def _perplexity(nll: Tensor) -> float:
    """Of negative log-likelihoods (tokens,); infinite where it has no float."""
    mean = float(nll.mean())
    return math.inf if mean > _LARGEST_EXPONENT else math.exp(mean)
