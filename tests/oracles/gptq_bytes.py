"""GPTQ's packing one code at a time, from the text of the format, with Python's integers alone."""

from __future__ import annotations

Matrix = list[list[int]]
Floats = list[list[float]]


def words_of(codes: list[int], bits: int) -> list[int]:
    """A stream of codes, lowest bits first, cut into 32-bit words that are read as signed."""
    stream = sum(code << (place * bits) for place, code in enumerate(codes))
    assert len(codes) * bits % 32 == 0
    words = [(stream >> at) & 0xFFFFFFFF for at in range(0, len(codes) * bits, 32)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def codes_of(words: list[int], bits: int) -> list[int]:
    """The codes in such words."""
    stream = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return [(stream >> at) & ((1 << bits) - 1) for at in range(0, 32 * len(words), bits)]


def transposed(matrix: Matrix) -> Matrix:
    return [list(row) for row in zip(*matrix, strict=True)]


def qweight(
    codes: Matrix,  # (out, in)
    bits: int,
) -> Matrix:  # (in * bits / 32, out)
    return transposed([words_of(row, bits) for row in codes])


def qzeros(
    zeros: Matrix,  # (groups, out)
    bits: int,
    offset: int,
) -> Matrix:  # (groups, out * bits / 32)
    return [words_of([zero - offset for zero in row], bits) for row in zeros]


def dequantized(
    qweight: Matrix, qzeros: Matrix, scales: Floats, g_idx: list[int], bits: int, offset: int
) -> Floats:  # (out, in)
    """`W[o, i] = scales[g_idx[i], o] * (code[i, o] - zero[g_idx[i], o])`; zero-points are the stored ones + offset."""
    codes = [codes_of(column, bits) for column in transposed(qweight)]
    zeros = [[stored + offset for stored in codes_of(row, bits)] for row in qzeros]
    return [
        [scales[g_idx[i]][o] * (row[i] - zeros[g_idx[i]][o]) for i in range(len(row))] for o, row in enumerate(codes)
    ]
