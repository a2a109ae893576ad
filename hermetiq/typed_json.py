"""Our own JSON files, read with suspicion: they may be damaged, edited, or somebody else's.

A file's format is a tree of dataclasses. Every value is checked against its type, every key must be there and known,
and a dataclass may refuse values of its own (`HermetiqError`), so that what is read can be used as if we had made it.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

from hermetiq.errors import HermetiqError

LARGEST: Final = 1 << 26
"""Bytes of a file; a whole model's takes less than a hundredth."""

T = TypeVar("T")


def encode(document: Any) -> bytes:
    """A dataclass as it is written: keys sorted, so that equal values are equal bytes.

    Raises:
        ValueError: a number in it is none, or infinite.
    """
    text = json.dumps(asdict(document), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode()


def read(path: Path, kind: type[T], *, version: int, remedy: str) -> T:
    """The file's one value of type `kind`, a dataclass with a field `version`.

    Raises:
        HermetiqError: it cannot be read, is not JSON, of another version, or a value has another type than it must;
            with that value's place, and `remedy`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        # A pipe would be waited for, for ever.
        raise HermetiqError("no regular file", where=str(path), remedy=remedy)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise HermetiqError(f"cannot be read: {error.strerror}", where=str(path), remedy=remedy) from error
    return parse(data, kind, where=str(path), version=version, remedy=remedy)


def parse(data: bytes, kind: type[T], *, where: str, version: int, remedy: str) -> T:
    """As `read`, from the bytes of the file; `where` is its name in an error."""
    try:
        if len(data) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        document = json.loads(data.decode(), parse_constant=_refuse_constant)
        # Half a surrogate pair passes as JSON, and then no file or terminal takes it.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise HermetiqError(f"not JSON ({error})", where=where, remedy=remedy) from None
    if not isinstance(document, dict) or document.get("version") != version:
        what = f"not a {kind.__name__.lower()} of version {version}"
        raise HermetiqError(what, where=where, remedy=remedy)
    try:
        return _decode(kind, document, "")
    except _Mismatch as mismatch:
        raise HermetiqError(str(mismatch), where=where, remedy=remedy) from None


class _Mismatch(Exception):
    """A value is not of the type that its place asks for."""


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _decode(kind: type[T], value: Any, place: str) -> T:
    """`value`, as JSON gave it, in the type `kind`: dataclasses, tuples, mappings, unions, literals and scalars."""
    decoded: Any
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        decoded = _decode_dataclass(kind, value, place)
    elif origin is tuple and isinstance(value, list):
        decoded = _decode_tuple(arguments, value, place)
    elif origin is Mapping and isinstance(value, dict):
        decoded = {key: _decode(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    elif origin in (Union, types.UnionType):
        decoded = _decode_union(arguments, value, place)
    elif origin is Literal and value in arguments:
        decoded = value
    elif kind is float and _is_finite(value):
        decoded = float(value)
    elif type(value) is kind:
        decoded = value
    else:
        raise _Mismatch(f"{place}: found {str(value)[:40]!r}, expected {getattr(kind, '__name__', kind)}")
    return typing.cast(T, decoded)


def _decode_tuple(kinds: tuple[Any, ...], values: list[Any], place: str) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise _Mismatch(f"{place}: found {len(values)} values, expected {len(kinds)}")
    pairs = zip(kinds, values, strict=True)
    return tuple(_decode(kind, value, f"{place}[{index}]") for index, (kind, value) in enumerate(pairs))


def _is_finite(value: Any) -> bool:
    """A number that a float can hold; JSON's whole numbers have no end."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _decode_dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(f"{place}: found {str(value)[:40]!r}, expected {kind.__name__}")
    types_by_name = typing.get_type_hints(kind)
    names = {item.name for item in fields(kind)}
    prefix = f"{place}: " if place else ""
    if names != value.keys():
        raise _Mismatch(f"{prefix}keys missing or unknown: {', '.join(sorted(names ^ value.keys()))}")
    path = f"{place}." if place else ""
    values = {name: _decode(types_by_name[name], value[name], path + name) for name in names}
    try:
        return kind(**values)
    except HermetiqError as error:
        raise _Mismatch(": ".join(part for part in (place, error.where, error.what) if part)) from None


def _decode_union(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    for kind in kinds:
        try:
            return _decode(kind, value, place)
        except _Mismatch:
            continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise _Mismatch(f"{place}: found {str(value)[:40]!r}, expected {names}")
