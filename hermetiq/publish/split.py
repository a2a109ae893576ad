"""Cuts a GGUF that is too large for the Hub into parts that llama.cpp loads by the first of them (U58), and joins them.

Plain cutting (`.part-a`) leaves people to join files by hand. llama.cpp's own way gives every part a header of its own:
the first repeats all metadata, each says which part it is of how many (`split.no`, `split.count`,
`split.tensors.count`), and the tensors are dealt out in order. Names and keys: llama.cpp's `tools/gguf-split`. Joined
again they are the file that was cut, byte for byte, so that its hash proves the parts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFValueType

from hermetiq.checkpoint.gguf_header import StoredTensor, read_header
from hermetiq.errors import HermetiqError
from hermetiq.formats.output import Output
from hermetiq.progress import Ticker, silent

from .plan import Part

_MOST_PARTS: Final = 999
_OWN: Final = "split."
"""Begins the keys by which a part says which it is."""
_COUNTS: Final = struct.Struct("<4sIQQ")
_U16, _I32, _U32, _U64 = (struct.Struct(f"<{form}") for form in "HiIQ")
_WIDTHS: Final = {
    **dict.fromkeys((GGUFValueType.UINT8, GGUFValueType.INT8, GGUFValueType.BOOL), 1),
    **dict.fromkeys((GGUFValueType.UINT16, GGUFValueType.INT16), 2),
    **dict.fromkeys((GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32), 4),
    **dict.fromkeys((GGUFValueType.UINT64, GGUFValueType.INT64, GGUFValueType.FLOAT64), 8),
}
_BLOCK: Final = 1 << 24
_ALIGNMENT: Final = int(GGUF_DEFAULT_ALIGNMENT)


@dataclass(frozen=True)
class _Share:
    """The tensors of one part, with its whole header."""

    header: bytes
    tensors: tuple[StoredTensor, ...]

    @property
    def bytes(self) -> int:
        return len(self.header) + sum(_aligned(tensor.size) for tensor in self.tensors)


def parts(path: Path, limit: int) -> tuple[Part, ...]:
    """How a file would be split so that no part has more than `limit` bytes; empty where it need not be.

    Raises:
        HermetiqError: it cannot be split so small: a tensor, or the metadata, is larger than `limit`.
        Refusal: it is no GGUF file.
    """
    if path.stat().st_size <= limit:
        return ()
    shares = _shares(path, limit)
    names = (f"{path.stem}-{index:05d}-of-{len(shares):05d}.gguf" for index in range(1, len(shares) + 1))
    return tuple(Part(name, share.bytes) for name, share in zip(names, shares, strict=True))


def split(path: Path, planned: Sequence[Part], folder: Path, limit: int, tick: Ticker = silent) -> dict[Path, str]:
    """Write the parts into `folder`, all of them or none; returns the SHA-256 of each, as hex.

    Raises:
        HermetiqError: the file is not the one that was planned, or the disk is full.
    """
    shares = _shares(path, limit)
    if [share.bytes for share in shares] != [part.bytes for part in planned]:
        raise HermetiqError("the file was changed while it was split", where=str(path), remedy="export it again")
    digests = {}
    for done, (part, share) in enumerate(zip(planned, shares, strict=True)):
        tick(f"splitting {part.name}", done / len(planned))
        digests[folder / part.name] = _write(folder / part.name, share)
    return digests


def join(parts: Sequence[Path], path: Path) -> str:
    """Write the file that `split` cut into `parts`, which are in order; returns its SHA-256, as hex.

    Raises:
        HermetiqError: two parts hold the same tensor, or the disk is full.
        Refusal: a part is no GGUF file, or not all of one.
    """
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        held = read_header(part).tensors
        if twice := sorted(held.keys() & tensors.keys()):
            raise HermetiqError(
                f"another part holds {twice[0][:80]!r} too", where=part.name, remedy="download it again"
            )
        tensors |= held
    pairs = [pair for key, pair in _pairs(parts[0]) if not key.startswith(_OWN)]
    return _write(path, _Share(_header(tensors, pairs), tuple(tensors.values())))


def _write(path: Path, share: _Share) -> str:
    """Write one file, whole or not at all; returns its SHA-256, as hex."""
    with Output(path) as output:
        output.append(share.header)
        for tensor in share.tensors:
            with tensor.path.open("rb") as source:
                source.seek(tensor.start)
                left = tensor.size
                while left and (data := source.read(min(left, _BLOCK))):
                    output.append(data)
                    left -= len(data)
            output.append(bytes(_aligned(tensor.size) - tensor.size))
        output.finish(share.bytes)
        output.publish()
    return output.digest.hexdigest()


def _shares(path: Path, limit: int) -> tuple[_Share, ...]:
    """The parts of a file, in order."""
    tensors = read_header(path).tensors
    pairs = []
    for key, pair in _pairs(path):
        if key.startswith(_OWN) or key == "general.alignment":
            raise HermetiqError(f"it states {key}", where=path.name, remedy="export it again")
        pairs.append(pair)
    groups: list[dict[str, StoredTensor]] = [{}]
    # Headers are counted as if a part held one tensor more: what is planned stays below the limit.
    used = _header_size(pairs)
    for name, tensor in tensors.items():
        needed = _entry_size(name, tensor) + _aligned(tensor.size)
        if groups[-1] and used + needed > limit:
            groups.append({})
            used = _header_size(())
        groups[-1][name] = tensor
        used += needed
    if len(groups) > _MOST_PARTS:
        raise HermetiqError(f"{len(groups)} parts are too many", where=path.name, remedy="choose a larger limit")
    shares = tuple(
        _Share(
            _header(group, (*(() if index else pairs), *_place(index, len(groups), len(tensors)))),
            tuple(group.values()),
        )
        for index, group in enumerate(groups)
    )
    if any(share.bytes > limit for share in shares):
        raise HermetiqError(f"no part of it fits into {limit} bytes", where=path.name, remedy="choose a larger limit")
    return shares


def _header(tensors: Mapping[str, StoredTensor], pairs: Sequence[bytes]) -> bytes:
    """Everything before the tensor data of a file with these pairs of metadata, padded to where the data begins."""
    written = [_COUNTS.pack(b"GGUF", 3, len(tensors), len(pairs)), *pairs]
    offset = 0
    for name, tensor in tensors.items():
        dimensions = b"".join(_U64.pack(size) for size in reversed(tensor.shape))
        written.append(_text(name) + _U32.pack(len(tensor.shape)) + dimensions + _U32.pack(tensor.type))
        written.append(_U64.pack(offset))
        offset += _aligned(tensor.size)
    header = b"".join(written)
    return header + bytes(_aligned(len(header)) - len(header))


def _place(index: int, parts: int, total: int) -> tuple[bytes, ...]:
    """The pairs of metadata by which a part says which it is, `index` counting from 0, of how many tensors in all."""
    own = (
        ("no", GGUFValueType.UINT16, _U16.pack(index)),
        ("count", GGUFValueType.UINT16, _U16.pack(parts)),
        ("tensors.count", GGUFValueType.INT32, _I32.pack(total)),
    )
    return tuple(_text(_OWN + key) + _U32.pack(kind) + value for key, kind, value in own)


def _header_size(pairs: Sequence[bytes]) -> int:
    """Bytes of a part's header before it names a tensor, and what its padding may take."""
    return len(_header({}, (*pairs, *_place(0, 0, 0)))) + _ALIGNMENT


def _entry_size(name: str, tensor: StoredTensor) -> int:
    return _U64.size + len(name.encode()) + _U32.size + _U64.size * len(tensor.shape) + _U32.size + _U64.size


def _pairs(path: Path) -> Iterator[tuple[str, bytes]]:
    """The file's metadata, each pair by its key and as it stands there: types are kept that a reader would lose."""
    with path.open("rb") as file:
        _, _, _, count = _COUNTS.unpack(file.read(_COUNTS.size))
        for _ in range(count):
            start = file.tell()
            key = file.read(_number(file, _U64)).decode()
            _skip(file, GGUFValueType(_number(file, _U32)))
            end = file.tell()
            file.seek(start)
            yield key, file.read(end - start)


def _skip(file: BinaryIO, kind: GGUFValueType) -> None:
    if kind is GGUFValueType.STRING:
        file.seek(_number(file, _U64), 1)
    elif kind is GGUFValueType.ARRAY:
        item, count = GGUFValueType(_number(file, _U32)), _number(file, _U64)
        if item in _WIDTHS:
            file.seek(_WIDTHS[item] * count, 1)
        else:
            for _ in range(count):
                _skip(file, item)
    else:
        file.seek(_WIDTHS[kind], 1)


def _number(file: BinaryIO, form: struct.Struct) -> int:
    return int(form.unpack(file.read(form.size))[0])


def _text(text: str) -> bytes:
    data = text.encode()
    return _U64.pack(len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
