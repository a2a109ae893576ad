"""The header of a GGUF file, read without trust.

`gguf.GGUFReader` believes every count and length it reads, so a broken file makes it run for hours or fill the memory;
it also maps the whole file and spends seconds on a large vocabulary. Here nothing is read past the end of the file, and
no count is believed that the rest of the file could not hold. Layout: `docs/gguf.md` of ggml, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, NoReturn

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from hermetiq.errors import Refusal

from .documents import incomplete

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MOST_ITEMS: Final = 1 << 24
"""Of an array: far above any vocabulary and its merges."""
_MOST_DIMENSIONS: Final = 4
_SMALLEST_PAIR, _SMALLEST_TENSOR = 13, 32
"""Bytes that a metadata pair and a tensor's entry take at least."""

_SCALARS: Final = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}
_LENGTH: Final = struct.Struct("<Q")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. `shape` is outermost first, as in torch."""

    path: Path
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    """First byte in the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class GgufHeader:
    """What a file states before its tensor data. Arrays are lists; `tensors` is in the file's order."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path) -> GgufHeader:
    """Metadata and tensor directory of one file.

    Raises:
        Refusal: `source-incomplete`, it is no GGUF file, it ends too early, or its header makes no sense.
    """
    try:
        if not path.is_file():
            raise _Broken("no such file", "a GGUF file")
        if not path.stat().st_size:
            raise _Broken("an empty file", "a GGUF file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read(path, content)
    except _Broken as broken:
        raise Refusal(incomplete(path.name, found=broken.found, expected=broken.expected)) from None
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise Refusal(incomplete(path.name, found=found, expected="a readable GGUF file")) from error
    except ValueError as error:
        # Text that is not UTF-8, and unknown type numbers.
        raise Refusal(incomplete(path.name, found=str(error)[:120], expected="a GGUF file")) from error


class _Broken(Exception):
    def __init__(self, found: str, expected: str) -> None:
        self.found, self.expected = found, expected


def _read(path: Path, content: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(content)
    if cursor.take(4) != _MAGIC:
        raise _Broken("another kind of file", "one that begins with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = version & 0xFFFF == 0
        raise _Broken("big-endian byte order" if swapped else f"version {version}", "GGUF version 3, little-endian")
    tensor_count, pair_count = cursor.number("Q"), cursor.number("Q")
    cursor.require(tensor_count * _SMALLEST_TENSOR + pair_count * _SMALLEST_PAIR)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text()
        if key in metadata:
            raise _Broken(f"the key {key[:80]!r} twice", "each key once")
        metadata[key] = cursor.value(GGUFValueType(cursor.number("I")))
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Broken(f"general.alignment {alignment!r}", "a power of two")
    entries = [cursor.tensor() for _ in range(tensor_count)]
    data = -(-cursor.at // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in entries:
        tensor = StoredTensor(path, shape, kind, data + offset, _byte_size(name, shape, kind))
        if tensor.start + tensor.size > len(content):
            raise _Broken(f"{len(content)} bytes, {name[:80]} reaching beyond them", "the whole file")
        if name in tensors:
            raise _Broken(f"the tensor {name[:80]} twice", "each tensor once")
        tensors[name] = tensor
    return GgufHeader(metadata, tensors)


class _Cursor:
    """A place in the file that never passes its end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.at = 0

    def require(self, size: int) -> None:
        if size > len(self._content) - self.at:
            raise _Broken("the end of the file inside its header", "the whole file")

    def take(self, size: int) -> bytes:
        self.require(size)
        self.at += size
        return self._content[self.at - size : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self.text()
        if kind is GGUFValueType.ARRAY:
            return self._array()
        form = "<" + _SCALARS[kind]
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise _Broken(f"{name[:80]} with {dimensions} dimensions", f"1 to {_MOST_DIMENSIONS}")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        return name, shape, GGMLQuantizationType(self.number("I")), self.number("Q")

    def _array(self) -> list[Any]:
        kind, count = GGUFValueType(self.number("I")), self.number("Q")
        if kind is GGUFValueType.ARRAY or count > _MOST_ITEMS:
            raise _Broken(f"an array of {count} items of type {kind.name}", f"at most {_MOST_ITEMS} plain values")
        if kind is GGUFValueType.STRING:
            return self._texts(count)
        form = np.dtype(_SCALARS[kind]).newbyteorder("<")
        items: list[Any] = np.frombuffer(self.take(count * form.itemsize), form).tolist()
        return items

    def _texts(self, count: int) -> list[str]:
        """As `text`, `count` times: a vocabulary has so many that the calls would cost more than the reading."""
        self.require(count * _LENGTH.size)
        content, end, at = self._content, len(self._content), self.at
        texts = []
        for _ in range(count):
            start = at + _LENGTH.size
            if start > end:
                self._cut_off()
            at = start + _LENGTH.unpack_from(content, at)[0]
            if at > end:
                self._cut_off()
            texts.append(content[start:at].decode())
        self.at = at
        return texts

    def _cut_off(self) -> NoReturn:
        raise _Broken("the end of the file inside its header", "the whole file")


def _byte_size(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise _Broken(f"{name[:80]} of shape {shape} in {kind.name}", f"rows of {block} values")
    return prod(shape) // int(block) * int(size)
