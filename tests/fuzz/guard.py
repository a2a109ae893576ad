"""What a case may do: end within its time and memory, read its own folder, write nothing, call nobody.

Python tells an audit hook of every file that it opens. Libraries that open files in their own code do not, so those
that `inspect` uses are made to say so here.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import sentencepiece

import hermetiq
from hermetiq.checkpoint import shards

CPU_SECONDS: Final = 5.0
"""Of one case, in this process; a template has limits of its own, in its own."""
MEMORY: Final = 96 << 20
"""Bytes by which the largest resident set may grow in one case: no file of a case is larger than 1 MB."""

_OWN: Final = tuple(
    os.path.realpath(path) for path in {sys.prefix, sys.base_prefix, Path(hermetiq.__file__).parent, os.devnull}
)
"""Python, its packages and the program itself, which are read where something is imported late."""
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_roots: tuple[str, ...] | None = None
_escapes: list[str] = []


class Forbidden(BaseException):
    """A case did what none may; no handler of the program may catch it."""


@contextmanager
def guarded(*folders: Path) -> Iterator[None]:
    """Within it only files in `folders` may be read, for so long and with so much memory.

    Raises:
        Forbidden: with what was done.
    """
    global _roots
    _install()
    _escapes.clear()
    before = _peak()
    _roots = (*_OWN, *(os.path.realpath(folder) for folder in folders))
    usual = signal.signal(signal.SIGPROF, _overdue)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        with ExitStack() as stack:
            stack.enter_context(patch.object(shards, "safe_open", _told(shards.safe_open)))
            stack.enter_context(
                patch.object(sentencepiece, "SentencePieceProcessor", _told(sentencepiece.SentencePieceProcessor))
            )
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, usual)
        _roots = None
    if _escapes:
        raise Forbidden(f"outside its folder: {_escapes}")
    if (grown := _peak() - before) > MEMORY:
        raise Forbidden(f"{grown >> 20} MiB of memory")


def _told(function: Any) -> Any:
    """`function`, which opens a file without Python's knowing, announcing it."""

    def call(path: Any = None, *arguments: Any, **options: Any) -> Any:
        for opened in (path, options.get("model_file")):
            if isinstance(opened, str | os.PathLike):
                sys.audit("open", os.fspath(opened), "r", os.O_RDONLY)
        return function(*(() if path is None else (path,)), *arguments, **options)

    return call


def _install(_installed: list[bool] = []) -> None:  # noqa: B006 (a hook cannot be taken away, so it is added once)
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _roots is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike):
            _require_inside(os.fsdecode(path), writing=bool((flags or 0) & _WRITING))
    elif event in ("os.listdir", "os.scandir"):
        if isinstance(arguments[0], str | bytes | os.PathLike):
            _require_inside(os.fsdecode(arguments[0]), writing=False)
    elif event == "subprocess.Popen":
        if "render_worker.py" not in str(arguments[1]):
            _refuse(f"runs {arguments[1]}")
    elif event.startswith(("socket.connect", "os.system", "os.remove", "os.rename", "os.mkdir", "shutil.")):
        _refuse(f"{event} {arguments}")


def _require_inside(path: str, *, writing: bool) -> None:
    assert _roots is not None
    if writing:
        _refuse(f"writes {path}")
    real = os.path.realpath(path)
    if not any(real == root or real.startswith(root + os.sep) for root in _roots):
        _refuse(f"reads {path}")


def _refuse(what: str) -> None:
    _escapes.append(what)
    raise Forbidden(what)


def _overdue(number: int, frame: object) -> None:
    raise Forbidden(f"more than {CPU_SECONDS} seconds of processor time")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
