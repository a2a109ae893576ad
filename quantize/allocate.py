"""Which rung of the ladder each layer gets: the least expected damage that a budget of bits can buy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store a layer."""

    bits: int
    """Stored bits of the whole layer."""
    cost: float
    """Expected damage to the model, nats per token."""


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, int]:
    """For each layer the index of the option to take."""
    raise NotImplementedError
