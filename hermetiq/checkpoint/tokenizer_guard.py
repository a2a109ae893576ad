"""A `tokenizer.json` is a small program by a stranger: replacements and regular expressions that run on every text.

What could make a text grow without end is refused before anything runs. A pattern that goes back and forth beyond its
limit makes the `tokenizers` library panic, and a panic is no `Exception`: here it becomes a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from hermetiq.errors import Refusal

from .documents import incomplete

_FILE: Final = "tokenizer.json"
_STEPS: Final = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
"""Parts of the file that change text, and where a sequence of them lists its steps."""
_MOST_STEPS: Final = 8
"""Of one part; a byte-level step may double a text, and every step works on the outcome of the one before."""
_LONGEST_PREFIX: Final = 8
"""Characters that a step may put before a text."""


def require_bounded(document: Mapping[str, Any]) -> None:
    """Refuse steps that make a text longer than a fixed multiple of what it was.

    Llama, Mistral and Qwen have one or two steps, which replace one character by one.

    Args:
        document: a parsed `tokenizer.json` that the library loads.

    Raises:
        Refusal: `source-incomplete`, with the part of the file.
    """
    for part, list_name in _STEPS.items():
        steps = _steps(document.get(part), list_name)
        if len(steps) > _MOST_STEPS:
            raise _refusal(part, f"{len(steps)} steps", f"at most {_MOST_STEPS}")
        for step in steps:
            if _grows(step):
                raise _refusal(part, f"a step {step!r:.80}", "no step that can make a text much longer")


@contextmanager
def panics_refused() -> Iterator[None]:
    """Turns a panic of the library into a refusal; works as a decorator, too.

    Raises:
        Refusal: `source-incomplete`.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _refusal(
            "", f"a tokenizer that fails on a text: {str(error)[:120]}", "one that takes every text"
        ) from None


def _steps(part: Any, list_name: str) -> list[Mapping[str, Any]]:
    """The steps of a part, sequences within sequences laid out flat."""
    steps, waiting = [], [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, Mapping):
            inner = step.get(list_name)
            if isinstance(inner, list):
                waiting += inner
            else:
                steps.append(step)
    return steps


def _grows(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Replace":
        replaced = step.get("pattern")
        text = replaced.get("String") if isinstance(replaced, Mapping) else None
        return not isinstance(text, str) or len(str(step.get("content"))) > len(text)
    if step.get("type") == "Prepend":
        return len(str(step.get("prepend"))) > _LONGEST_PREFIX
    # A table of replacements of any length, for unigram models.
    return step.get("type") == "Precompiled"


def _refusal(field: str, found: str, expected: str) -> Refusal:
    return Refusal(incomplete(_FILE, field=field, found=found, expected=expected))
