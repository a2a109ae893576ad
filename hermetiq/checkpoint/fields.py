"""Typed reading of configuration files: a value of another type is a finding, never a TypeError later on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from hermetiq.errors import Refusal
from hermetiq.rules import finding


@dataclass(frozen=True)
class Fields:
    """An object of untrusted JSON, read by type.

    Every method raises Refusal (`source-incomplete`, file and key named) where the value has another type.
    """

    raw: Mapping[str, Any]
    file: str
    prefix: str = ""

    def size(self, key: str, default: int, *, null: int | None = None) -> int:
        """A positive integer; `null` in the file means `null` here, where the family allows it."""
        return int(self._read(key, default, _is_size, "a positive integer", null))

    def positive(self, key: str, default: float) -> float:
        return float(self._read(key, default, _is_positive, "a positive number", None))

    def flag(self, key: str) -> bool:
        return bool(self._read(key, False, lambda value: isinstance(value, bool), "true or false", False))

    def mapping(self, key: str) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self._read(key, {}, lambda value: isinstance(value, Mapping), "an object", {})
        return value

    def refuse(self, key: str, found: object, expected: str) -> NoReturn:
        raise Refusal(
            finding(
                "source-incomplete",
                file=self.file,
                field=self.prefix + key,
                found=repr(found)[:80],
                expected=expected,
                repair="Restore the value from the original file.",
            )
        )

    def _read(self, key: str, default: Any, fits: Callable[[Any], bool], expected: str, null: Any) -> Any:
        value = self.raw.get(key, default)
        if value is None and null is not None:
            return null
        if not fits(value):
            self.refuse(key, value, expected)
        return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_positive(value: Any) -> bool:
    # Comparisons, because math.isfinite overflows on the integers that JSON allows.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30
