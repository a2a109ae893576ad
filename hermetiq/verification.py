"""What `verify` found out about one artifact, in the form that the manifest keeps and scripts read.

Figures alone hide where a model stopped stopping, so every turn end and every tag has a record of its own. The records
are read back with the manifest, which may be somebody else's: they refuse what no measurement can give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hermetiq.errors import HermetiqError

LONGEST_TEXT: Final = 60
"""Characters of a chat that a turn end shows."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked: `value` against `limit`, and in words the `reason` when it failed."""

    name: str
    passed: bool
    value: float | str
    limit: float | str
    reason: str = ""


@dataclass(frozen=True)
class TurnEnd:
    """The terminator where one assistant turn of a held-out chat ends; log-probabilities in nats, rank 1 is the first.

    Raises:
        HermetiqError: a place below zero, a rank below one, or text that is too long or not printable.
    """

    chat: int
    """Number of the chat among those that were read, from 0."""
    position: int
    """Of the last token before the terminator, from 0."""
    text: str
    """The end of what was read before it; what does not print is spelled out (`\\n`)."""
    source_logprob: float | None
    """None where it is no finite number, here and below."""
    source_rank: int
    artifact_logprob: float | None
    artifact_rank: int

    def __post_init__(self) -> None:
        if min(self.chat, self.position) < 0 or min(self.source_rank, self.artifact_rank) < 1:
            raise HermetiqError("a place below 0 or a rank below 1")
        if len(self.text) > LONGEST_TEXT or not self.text.isprintable():
            raise HermetiqError(f"text of more than {LONGEST_TEXT} characters, or that does not print")

    @property
    def drop(self) -> float:
        """Log-probability that the terminator lost, in nats; infinite where the artifact's or the source's is none."""
        if self.source_logprob is None or self.artifact_logprob is None:
            return float("inf")
        return self.source_logprob - self.artifact_logprob


@dataclass(frozen=True)
class TagRow:
    """A tag's row in one matrix of the artifact, held against the source's.

    Raises:
        HermetiqError: an id below zero.
    """

    text: str
    id: int
    matrix: Literal["embedding", "head"]
    type: str
    """In which the artifact stores the row."""
    cosine: float | None
    """Between the two rows; None where one of them is zero or not finite."""
    error: float | None
    """Largest |difference| over the source's largest |weight| in the row; None where that is no finite number."""
    limit: float
    """Largest error that rounding to the type leaves."""

    def __post_init__(self) -> None:
        if self.id < 0:
            raise HermetiqError("an id below 0")

    @property
    def sound(self) -> bool:
        return self.error is not None and self.error <= self.limit


@dataclass(frozen=True)
class Verification:
    """What `verify` found out about one artifact."""

    sha256: str
    """Of the bytes that were verified, as in `Artifact`."""
    checks: tuple[Check, ...]
    figures: Mapping[str, float]
    """Measurements by name; those that could not be taken are left out."""
    notes: tuple[str, ...] = ()
    """Differences that matter to somebody and fail nothing."""
    turn_ends: tuple[TurnEnd, ...] = ()
    """Every turn end of the held-out chats; empty where the artifact's weights could not be read."""
    tag_rows: tuple[TagRow, ...] = ()
    """Every tag of the contract, in the embedding and in the head; empty likewise."""

    @property
    def most_lost(self) -> tuple[TurnEnd, ...]:
        """The turn ends at which the terminator lost log-probability, the largest loss first."""
        lost = (end for end in self.turn_ends if end.drop > 0)
        return tuple(sorted(lost, key=lambda end: (-end.drop, end.chat, end.position)))
