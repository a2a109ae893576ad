"""EXL2 one bit at a time, from the text of the format, with Python's integers and IEEE halves alone."""

from __future__ import annotations

from struct import pack, unpack

Matrix = list[list[int]]
Groups = list[tuple[int, int]]


def half(value: float) -> float:
    """The nearest float16, ties to even. Python's doubles hold any product of two halves exactly."""
    rounded: float = unpack("<e", pack("<e", value))[0]
    return rounded


def bits_of(numbers: list[int], width: int) -> list[int]:
    """Each number's bits, the lowest first, one number behind the other."""
    return [number >> place & 1 for number in numbers for place in range(width)]


def numbers_of(bits: list[int], width: int) -> list[int]:
    return [sum(bits[at + place] << place for place in range(width)) for at in range(0, len(bits), width)]


def signed(words: list[int], width: int) -> list[int]:
    return [word - (1 << width) if word >> (width - 1) else word for word in words]


def q_weight(
    codes: Matrix,  # (out, in)
    order: list[int],
    groups: Groups,
) -> Matrix:  # (rows of words, out)
    """Down each column the codes of one group after the other; missing columns to a multiple of 32 hold zero codes."""
    columns = []
    for row in [*codes, *[None] * (-len(codes) % 32)]:
        words, at = list[int](), 0
        for width, size in groups:
            stored = [1 << (width - 1)] * size if row is None else [row[i] for i in order[at : at + size]]
            words += signed(numbers_of(bits_of(stored, width), 32), 32)
            at += size
        columns.append(words)
    return [list(line) for line in zip(*columns, strict=True)]


def q_scale(
    indices: Matrix,  # (groups, out)
) -> Matrix:  # (groups, padded out / 8)
    return [signed(numbers_of(bits_of(row + [0] * (-len(row) % 32), 4), 32), 32) for row in indices]


def q_groups(groups: Groups) -> list[int]:
    pairs, row = list[int](), 0
    for width, size in groups:
        pairs += [width, row]
        row += size * width // 32
    return pairs


def q_invperm(order: list[int]) -> list[int]:
    return [order.index(column) for column in range(len(order))]


def dequantized(
    weight: Matrix, scale: Matrix, scale_max: list[float], pairs: list[int], invperm: list[int]
) -> list[list[float]]:  # (padded out, in)
    """`(code - 2^(b-1)) * ((s+1)^2 * (scale_max / 256))`, rounded to float16 wherever something is multiplied."""
    starts = [*pairs[1::2], len(weight)]
    columns = []
    for out in range(len(weight[0])):
        stored = list[float]()
        for group, width in enumerate(pairs[::2]):
            words = [weight[row][out] for row in range(starts[group], starts[group + 1])]
            index = scale[group][out // 8] >> 4 * (out % 8) & 15
            step = half((index + 1) ** 2 * half(scale_max[group] / 256))
            stored += [half((code - 2 ** (width - 1)) * step) for code in numbers_of(bits_of(words, 32), width)]
        columns.append([stored[place] for place in invperm])
    return columns
