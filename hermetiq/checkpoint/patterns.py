"""The patterns of an adapter's configuration: regular expressions that a stranger wrote.

peft matches them with `re`, which a few characters can keep busy for longer than anybody waits (`(a+)+b`). So only
patterns whose cost is bounded are matched; what people write to name modules is among them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .fields import Fields

_LONGEST: Final = 256
"""Characters of a pattern."""
_MOST_CHOICES: Final = 3
"""Groups and repetitions of one pattern; the ways to match multiply with each."""
_MOST_COSTLY: Final = 64
"""Patterns that have groups or repetitions at all."""
_MOST: Final = 4096
"""Patterns: every module of the largest model by its name, several times over."""
_EXPECTED: Final = (
    f"a regular expression of at most {_LONGEST} characters and {_MOST_CHOICES} groups and repetitions, "
    "no group repeated"
)

_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\)[*+?{]|\(\?:|\(\?|.", re.DOTALL)
"""What a pattern is read as: an escape, a class of characters, a repeated group, an opening, or one character."""
_CHOICES: Final = frozenset({"(", "(?:", "*", "+", "?", "{"})
_UNBOUNDED = re.compile(r"\).|\(\?$|\\[1-9]")
"""A repeated group, an extension of the syntax, a reference back."""


@dataclass(frozen=True)
class Patterns:
    """Values by pattern, in the order of the file."""

    values: tuple[tuple[re.Pattern[str], float], ...]

    def value_for(self, module: str, default: float) -> float:
        """The value of the first pattern that matches the end of the module's name, as peft's `get_pattern_key`."""
        return next((value for pattern, value in self.values if pattern.match(module)), default)


def read_patterns(config: Fields, key: str, *, whole: bool) -> Patterns:
    """Read `rank_pattern` or `alpha_pattern`.

    Args:
        whole: the values are positive integers, else positive numbers.

    Raises:
        Refusal: `source-incomplete`, a pattern that is no regular expression or could take forever, or a value of
            another type.
    """
    stated = config.mapping(key)
    inner = Fields(stated, config.file, prefix=f"{key}.")
    if len(stated) > _MOST:
        config.refuse(key, f"{len(stated)} patterns", f"at most {_MOST}")
    values = tuple(
        (_compile(pattern, config, key), inner.size(pattern, 1) if whole else inner.positive(pattern, 1.0))
        for pattern in stated
    )
    costly = sum(_choices(_PIECE.findall(pattern)) > 0 for pattern in stated)
    if costly > _MOST_COSTLY:
        config.refuse(key, f"{costly} patterns with groups or repetitions", f"at most {_MOST_COSTLY}")
    return Patterns(values)


def _compile(pattern: str, config: Fields, key: str) -> re.Pattern[str]:
    if len(pattern) > _LONGEST:
        config.refuse(key, pattern, _EXPECTED)
    pieces = _PIECE.findall(pattern)
    if _choices(pieces) > _MOST_CHOICES or any(_UNBOUNDED.match(piece) for piece in pieces):
        config.refuse(key, pattern, _EXPECTED)
    try:
        with warnings.catch_warnings():
            # `re` warns of patterns that a later Python will read in another way.
            warnings.simplefilter("error", FutureWarning)
            return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError, FutureWarning):
        config.refuse(key, pattern, _EXPECTED)


def _choices(pieces: Iterable[str]) -> int:
    return sum(piece in _CHOICES for piece in pieces)
