"""How long work tells of itself: a callback that hears what is being done and which share of it is finished."""

from __future__ import annotations

from collections.abc import Callable

Ticker = Callable[[str, float], None]
"""`tick(what, share)` with `share` between 0 and 1."""


def silent(what: str, share: float) -> None:
    """The ticker of callers that do not listen."""


def part(tick: Ticker, start: float, end: float) -> Ticker:
    """A ticker for one stage of a longer job, which fills the span from `start` to `end` of the whole."""
    return lambda what, share: tick(what, start + (end - start) * share)


def shares(tick: Ticker, count: int) -> list[Ticker]:
    """Tickers of equal parts, one after another."""
    return [part(tick, place / count, (place + 1) / count) for place in range(count)]
