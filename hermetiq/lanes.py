"""Work side by side on a CPU: several streams of operations, each with its share of the cores.

The operations of a small block are short, and threads that share each of them sleep in between: waking up cost a fifth
of two cores. Threads that spin would not, but two programs that spin slow each other several times. So what is
independent runs in a thread of its own instead. Results come in the order of the calls, whichever is done first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Result = TypeVar("Result")

_MOST = 4
"""Lanes of a machine with many cores: each holds what it works on in memory."""


@dataclass(frozen=True)
class Lanes:
    """Threads that share torch's cores evenly; the caller's own where there is one lane."""

    count: int
    _workers: Executor | None

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """What each of some independent calls returns, in their order. One that fails lets the others finish."""
        if self._workers is None:
            return [call() for call in calls]
        return [future.result() for future in [self._workers.submit(call) for call in calls]]

    def turns(self, items: int) -> Iterator[range]:
        """The numbers from 0 to `items`, as many at a time as there are lanes."""
        for start in range(0, items, self.count):
            yield range(start, min(start + self.count, items))


@contextmanager
def lanes(device: torch.device) -> Iterator[Lanes]:
    """Lanes for work on a device: several on a CPU where torch may use several cores, and one on a GPU."""
    threads = torch.get_num_threads()
    count = min(threads, _MOST) if device.type == "cpu" else 1
    if count == 1:
        yield Lanes(1, None)
        return
    try:
        with ThreadPoolExecutor(count, "lane", torch.set_num_threads, (threads // count,)) as workers:
            yield Lanes(count, workers)
    finally:
        # Each lane's setting is its own thread's, and also what threads begin with that are made later.
        torch.set_num_threads(threads)
