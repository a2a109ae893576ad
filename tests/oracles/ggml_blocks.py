"""Blocks decoded by hand from the description of ggml's formats: one value at a time, plain Python integers.

Shares nothing with `hermetiq` or with the `gguf` package, so that it can contradict both.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def decode(name: str, data: bytes) -> NDArray[np.float32]:
    """The weights of consecutive blocks of the named type."""
    size, block = _BLOCKS[name]
    assert len(data) % size == 0
    return np.array([value for at in range(0, len(data), size) for value in block(data[at : at + size])], np.float32)


def _half(data: bytes, at: int) -> np.float32:
    return np.float32(struct.unpack_from("<e", data, at)[0])


def _q8_0(data: bytes) -> list[np.float32]:
    """fp16 scale, then 32 signed bytes."""
    scale = _half(data, 0)
    return [scale * np.float32(code) for code in struct.unpack_from("<32b", data, 2)]


def _q4_0(data: bytes) -> list[np.float32]:
    """fp16 scale, then 16 bytes: low nibbles are weights 0..15, high nibbles 16..31; 8 is zero."""
    scale = _half(data, 0)
    low = [byte & 15 for byte in data[2:]]
    high = [byte >> 4 for byte in data[2:]]
    return [scale * np.float32(code - 8) for code in low + high]


def _q4_k(data: bytes) -> list[np.float32]:
    """fp16 scale of scales, fp16 scale of minima, 12 bytes of eight 6-bit (scale, minimum) pairs, 128 bytes of nibbles.

    Of sub-blocks 0..3 the scales are the low six bits of bytes 0..3 and the minima those of bytes 4..7. Of sub-blocks
    4..7 the low four bits of both are in bytes 8..11 (scale low nibble, minimum high nibble), and their top two bits
    are the top two bits of bytes 0..3 and 4..7.
    """
    scale, minimum = _half(data, 0), _half(data, 2)
    packed, codes = data[4:16], data[16:]
    values = []
    for sub in range(8):
        if sub < 4:
            s, m = packed[sub] & 63, packed[sub + 4] & 63
        else:
            s = (packed[sub + 4] & 15) | (packed[sub - 4] >> 6) << 4
            m = (packed[sub + 4] >> 4) | (packed[sub] >> 6) << 4
        # Two sub-blocks of 32 share 32 bytes: the even one has the low nibbles, the odd one the high.
        for byte in codes[sub // 2 * 32 : sub // 2 * 32 + 32]:
            code = byte >> 4 if sub % 2 else byte & 15
            values.append(scale * np.float32(s) * np.float32(code) - minimum * np.float32(m))
    return values


def _q6_k(data: bytes) -> list[np.float32]:
    """128 bytes of low nibbles, 64 bytes of top bit pairs, 16 signed scales, fp16 scale of scales; 32 is zero."""
    low, top = data[:128], data[128:192]
    scales = struct.unpack_from("<16b", data, 192)
    scale = _half(data, 208)
    values = []
    for index in range(256):
        half, quarter, place = index // 128, index % 128 // 32, index % 32
        byte = low[half * 64 + quarter % 2 * 32 + place]
        nibble = byte & 15 if quarter < 2 else byte >> 4
        pair = top[half * 32 + place] >> 2 * quarter & 3
        values.append(scale * np.float32(scales[index // 16]) * np.float32((nibble | pair << 4) - 32))
    return values


_BLOCKS: dict[str, tuple[int, Callable[[bytes], list[np.float32]]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_K": (144, _q4_k),
    "Q6_K": (210, _q6_k),
}
