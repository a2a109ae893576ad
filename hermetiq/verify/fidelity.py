"""How far the artifact's next-token distribution has moved from the source's, on chats neither was tuned on.

Perplexity alone hides damage: two models can be equally surprised by a text and yet prefer other words, and one token,
the terminator, decides whether a chat works at all. So the whole distributions are compared at every token (KL
divergence, as `llama-perplexity --kl-divergence` does), and the terminator is followed where assistant turns end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CHUNK = 64
"""Tokens whose distributions are held at a time: with 150,000 rows they and what is made of them take 400 MB."""

Logits = Callable[[Tensor], Tensor]
"""The head: states (tokens, hidden) to logits (tokens, vocabulary)."""
Row = tuple[Sequence[int], Tensor]
"""Token ids of one chat (tokens,) and its final states (tokens, hidden)."""


@dataclass(frozen=True)
class TurnEnd:
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
    source_ends: tuple[TurnEnd, ...]
    artifact_ends: tuple[TurnEnd, ...]
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

    kl: npt.NDArray[np.float64]
    source_nll: npt.NDArray[np.float64]
    artifact_nll: npt.NDArray[np.float64]
    same_choice: npt.NDArray[np.bool_]


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

    Every token but a row's last predicts the next one and is counted. Logits are float32, log-softmax and all sums
    float64, so that equal models give exactly zero and rounding stays below 1e-6.
    """
    chunks = [
        _compare_chunk(source_logits(before), artifact_logits(after), targets)
        for before, after, targets in _stretches(source, artifact)
    ]
    kl = np.concatenate([chunk.kl for chunk in chunks])
    return Fidelity(
        tokens=len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        perplexity_source=math.exp(np.concatenate([chunk.source_nll for chunk in chunks]).mean()),
        perplexity_artifact=math.exp(np.concatenate([chunk.artifact_nll for chunk in chunks]).mean()),
        top1_agreement=float(np.concatenate([chunk.same_choice for chunk in chunks]).mean()),
        source_ends=turn_ends_of(source, source_logits, ends, terminator),
        artifact_ends=turn_ends_of(artifact, artifact_logits, ends, terminator),
    )


def logprobs(logits: Tensor) -> Tensor:
    """Natural-log probabilities in float64, of the same shape (tokens, vocabulary)."""
    return torch.log_softmax(logits.double(), dim=-1)


def turn_ends_of(
    rows: Sequence[Row], logits: Logits, ends: Sequence[tuple[int, int]], terminator: int
) -> tuple[TurnEnd, ...]:
    """The terminator's log-probability and rank at each of `ends`."""
    found = []
    for start in range(0, len(ends), CHUNK):
        places = ends[start : start + CHUNK]
        states = torch.stack([rows[row][1][position] for row, position in places])
        table = logprobs(logits(states))
        values = table[:, terminator]
        ranks = (table > values[:, None]).sum(dim=1) + 1
        found += [
            TurnEnd(row, position, float(value), int(rank))
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
    before, after = logprobs(source), logprobs(artifact)
    following = targets[:, None]
    return _Chunk(
        kl=(before.exp() * (before - after)).sum(dim=1).numpy(),
        source_nll=-before.gather(1, following)[:, 0].numpy(),
        artifact_nll=-after.gather(1, following)[:, 0].numpy(),
        same_choice=(before.argmax(dim=1) == after.argmax(dim=1)).numpy(),
    )
