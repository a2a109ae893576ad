"""`inspect` on checkpoints broken at random: whatever lies there, it ends in findings or in one error of ours.

A case is its number: `outcome(corpus, number)` repeats it. `make fuzz` runs twenty thousand of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from hermetiq.chat import template
from hermetiq.chat.inspect import inspect
from tests.fixtures.models import copy_of
from tests.fuzz import guard
from tests.fuzz.corpus import PIECES, Corpus
from tests.fuzz.guard import Forbidden, guarded
from tests.fuzz.run import outcome

CASES = 400
FOUND = (4176, 8351)
"""Cases of `make fuzz` that once ended in a traceback: pieces of a tokenizer.model that are no text."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("fuzz"))


def test_every_broken_source_ends_in_findings_or_an_error(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    # Most cases leave the template alone, and its process is what takes the time.
    monkeypatch.setattr(template, "_run", cache(template._run))
    outcomes = [outcome(corpus, number) for number in range(CASES)]
    # The cases are worth something only if they reach all three ends.
    assert {"sound", "findings", "error"} == set(outcomes)


@pytest.mark.parametrize("number", FOUND)
def test_what_was_found_stays_repaired(corpus: Corpus, number: int) -> None:
    assert outcome(corpus, number) in ("findings", "error")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda data: data[:49] + b"\xff" + data[50:], id="what the library says of it is no text"),
        pytest.param(lambda data: data.replace(b"the", b"\xffhe", 1), id="a piece is no text"),
    ],
)
def test_a_tokenizer_model_that_is_no_text_is_refused(
    corpus: Corpus, tmp_path: Path, broken: Callable[[bytes], bytes]
) -> None:
    folder = copy_of(corpus.folder / "pieces", tmp_path / "model")
    data = (folder / PIECES).read_bytes()
    (folder / PIECES).write_bytes(broken(data))
    (found,) = inspect(str(folder)).findings
    assert (found.rule, found.file) == ("source-incomplete", PIECES)


def test_the_same_number_is_the_same_case(corpus: Corpus) -> None:
    def content(number: int) -> dict[str, bytes]:
        path = corpus.case(number).path
        return {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else {"": path.read_bytes()}

    first = [content(number) for number in range(20)]
    assert first == [content(number) for number in range(20)]


def endless() -> None:
    while True:
        pass


def test_the_guard_sees_what_no_case_may_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "file").write_text("text")
    (inside / "link").symlink_to(outside / "file")
    with guarded(inside):
        assert (inside / "file").read_text() == "text"
    for forbidden in (
        (outside / "file").read_text,
        (inside / "link").read_text,
        lambda: list(outside.iterdir()),
        lambda: (inside / "new").write_text("x"),
        lambda: os.system("true"),
    ):
        with pytest.raises(Forbidden), guarded(inside):
            forbidden()
    monkeypatch.setattr(guard, "CPU_SECONDS", 0.01)
    with pytest.raises(Forbidden, match="processor time"), guarded(inside):
        endless()


def test_the_guard_sees_memory_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter((0, guard.MEMORY + 1))
    monkeypatch.setattr(guard, "_peak", lambda: next(peaks))
    with pytest.raises(Forbidden, match="MiB of memory"), guarded(tmp_path):
        pass
