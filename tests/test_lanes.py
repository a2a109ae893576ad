"""Lanes share torch's cores, keep the order of their calls, and leave torch as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from hermetiq.lanes import Lanes, lanes

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 9])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def asks() -> tuple[int, str]:
    return torch.get_num_threads(), threading.current_thread().name


def test_cores_are_shared_evenly_and_given_back(threads: int) -> None:
    with lanes(CPU) as side:
        assert side.count == min(threads, 4)
        found = side.run([asks] * 8)
        assert torch.get_num_threads() == threads
    assert {count for count, _ in found} == {max(1, threads // side.count)}
    assert all(name.startswith("lane") for _, name in found) == (threads > 1)
    assert torch.get_num_threads() == threads
    # A thread of a later time begins with torch's setting, too.
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_cores_are_given_back_when_work_fails(threads: int) -> None:
    with pytest.raises(KeyError), lanes(CPU) as side:
        side.run([partial(dict[str, str]().__getitem__, "nothing")])
    assert torch.get_num_threads() == threads


def test_a_gpu_has_one_lane(threads: int) -> None:
    with lanes(torch.device("cuda")) as side:
        assert side.run([asks]) == [(threads, threading.current_thread().name)]


def test_results_come_in_the_order_of_the_calls(threads: int) -> None:
    """The first call waits for the last, where there are lanes enough."""
    done = threading.Event()

    def first() -> str:
        return "first" if done.wait(0.0 if threads == 1 else 10.0) or threads == 1 else "never"

    def last() -> str:
        done.set()
        return "last"

    with lanes(CPU) as side:
        assert side.run([first, last]) == ["first", "last"]


def test_turns_cover_all_items_once() -> None:
    for count in (1, 2, 3):
        for items in (0, 1, 5, 6):
            turns = list(Lanes(count, None).turns(items))
            assert [number for turn in turns for number in turn] == list(range(items))
            assert all(0 < len(turn) <= count for turn in turns)
