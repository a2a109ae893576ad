"""AWQ's `gemm` packing one nibble at a time, from the text of the format, with Python's integers alone."""

from __future__ import annotations

Matrix = list[list[int]]
Floats = list[list[float]]
COLUMN_OF_NIBBLE = [0, 2, 4, 6, 1, 3, 5, 7]


def word_of(eight: list[int]) -> int:
    """Eight codes of neighbouring columns as one signed word."""
    word = 0
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        word |= eight[column] << (4 * nibble)
    return word - (1 << 32) if word >> 31 else word


def packed(
    rows: Matrix,  # (rows, out)
) -> Matrix:  # (rows, out / 8)
    return [[word_of(row[start : start + 8]) for start in range(0, len(row), 8)] for row in rows]


def unpacked(
    rows: Matrix,  # (rows, out / 8)
) -> Matrix:  # (rows, out)
    codes = [[0] * (8 * len(row)) for row in rows]
    for target, row in zip(codes, rows, strict=True):
        for place, word in enumerate(row):
            for nibble, column in enumerate(COLUMN_OF_NIBBLE):
                target[8 * place + column] = (word >> (4 * nibble)) & 15
    return codes


def dequantized(qweight: Matrix, qzeros: Matrix, scales: Floats, group_size: int) -> Floats:  # (out, in)
    codes, zeros = unpacked(qweight), unpacked(qzeros)
    return [
        [scales[i // group_size][o] * (codes[i][o] - zeros[i // group_size][o]) for i in range(len(codes))]
        for o in range(len(codes[0]))
    ]
