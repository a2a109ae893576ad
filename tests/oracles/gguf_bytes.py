"""A GGUF header read by hand: every field by its width, with no help from the `gguf` package."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class ParsedTensor:
    """Dimensions innermost first, type number, offset from the start of the data."""

    dimensions: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class ParsedHeader:
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, ParsedTensor]
    data: int
    """Where the tensor data begins."""


def parse(content: bytes) -> ParsedHeader:
    """Read everything that stands before the tensor data."""
    cursor = _Cursor(content)
    assert cursor.take("4s") == b"GGUF"
    version, tensor_count, pair_count = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
    metadata = {cursor.string(): cursor.value(cursor.take("I")) for _ in range(pair_count)}
    assert len(metadata) == pair_count, "a key stands twice"
    tensors = {}
    for _ in range(tensor_count):
        name = cursor.string()
        dimensions = tuple(cursor.take("Q") for _ in range(cursor.take("I")))
        tensors[name] = ParsedTensor(dimensions, cursor.take("I"), cursor.take("Q"))
    return ParsedHeader(version, metadata, tensors, data=(cursor.at + 31) // 32 * 32)


class _Cursor:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.content, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def string(self) -> str:
        length = self.take("Q")
        text = self.content[self.at : self.at + length].decode()
        self.at += length
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(count)]
        return self.take(_SCALARS[kind])
