"""Codes of a few bits in 32-bit words: the stream that GPTQ, AWQ and EXL2 store their matrices in.

Code `k` takes bits `k*b ... k*b+b-1` of a little-endian stream of words, so widths that do not divide 32 cross words
(docs/formats.md, Common). The work goes place by place within the shortest run of codes that fills whole words; each
place is one operation on the whole matrix, on whatever device it lies.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

WIDTHS = range(2, 9)
"""Bits that a code may have."""
_WORD = 32


def period(bits: int) -> int:
    """Codes in the shortest run that fills whole words; an axis to be packed is a multiple of it.

    Raises:
        ValueError: `bits` is none of `WIDTHS`.
    """
    if bits not in WIDTHS:
        raise ValueError(f"codes of {bits} bits, not of {WIDTHS[0]} to {WIDTHS[-1]}")
    return _WORD // gcd(bits, _WORD)


def pack(
    codes: Tensor,  # (..., n, ...) of any integer type, n along `axis`
    bits: int,
    axis: int,
) -> Tensor:  # (..., n * bits / 32, ...) int32
    """Pack the codes along one axis.

    Raises:
        ValueError: a code does not fit into `bits`, or the axis does not fill whole words.
    """
    run = period(bits)
    if codes.shape[axis] % run:
        raise ValueError(f"{codes.shape[axis]} codes of {bits} bits do not fill whole words; {run} do")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << bits:
        raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit into {bits} bits")
    columns = codes.movedim(axis, 0)
    places = columns.reshape(-1, run, *columns.shape[1:])
    words = places.new_zeros((len(places), run * bits // _WORD, *places.shape[2:]), dtype=torch.int32)
    for place in range(run):
        word, shift = divmod(place * bits, _WORD)
        code = places[:, place].to(torch.int32)
        words[:, word] |= code << shift
        if shift + bits > _WORD:
            words[:, word + 1] |= code >> (_WORD - shift)
    return words.flatten(0, 1).movedim(0, axis).contiguous()


def unpack(
    words: Tensor,  # (..., n * bits / 32, ...) int32
    bits: int,
    axis: int,
) -> Tensor:  # (..., n, ...) uint8
    """The codes along one axis of packed words.

    Raises:
        ValueError: the words hold no whole number of runs of codes.
    """
    run = period(bits)
    width = run * bits // _WORD
    if words.shape[axis] % width:
        raise ValueError(f"{words.shape[axis]} words do not hold whole runs of {bits}-bit codes; {width} do")
    rows = words.movedim(axis, 0)
    runs = rows.reshape(-1, width, *rows.shape[1:])
    codes = runs.new_empty((len(runs), run, *runs.shape[2:]), dtype=torch.uint8)
    for place in range(run):
        word, shift = divmod(place * bits, _WORD)
        # The sign bit comes along with a shift to the right; the mask takes it off again.
        code = runs[:, word] >> shift
        if shift + bits > _WORD:
            low = _WORD - shift
            code = (code & ((1 << low) - 1)) | (runs[:, word + 1] << low)
        codes[:, place] = code & ((1 << bits) - 1)
    return codes.flatten(0, 1).movedim(0, axis).contiguous()
