"""Streams of codes: bytes by hand, a slow twin, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hermetiq.formats import bits as stream
from tests.oracles.gptq_bytes import codes_of, words_of


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Codes of some width, (n, other) with n a multiple of the run that fills whole words; all codes occur."""
    bits = draw(st.sampled_from(stream.WIDTHS))
    length = draw(st.integers(1, 3)) * stream.period(bits)
    other = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    return torch.randint(0, 1 << bits, (length, other), generator=generator, dtype=torch.uint8), bits


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_words_are_those_of_the_slow_twin_along_either_axis(drawn: tuple[Tensor, int]) -> None:
    codes, bits = drawn
    words = stream.pack(codes, bits, axis=0)
    assert words.dtype == torch.int32
    assert words.T.tolist() == [words_of(column, bits) for column in codes.T.tolist()]
    assert torch.equal(stream.pack(codes.T, bits, axis=1), words.T)


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_unpacking_leads_back_along_either_axis(drawn: tuple[Tensor, int]) -> None:
    codes, bits = drawn
    words = stream.pack(codes, bits, axis=0)
    assert torch.equal(stream.unpack(words, bits, axis=0), codes)
    assert torch.equal(stream.unpack(words.T, bits, axis=1), codes.T)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(stream.WIDTHS), st.integers(0, 1 << 20))
def test_any_words_at_all_are_read_as_the_slow_twin_reads_them(bits: int, seed: int) -> None:
    width = stream.period(bits) * bits // 32
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(1 << 31), 1 << 31, (2 * width,), generator=generator).to(torch.int32)
    assert stream.unpack(words, bits, axis=0).tolist() == codes_of(words.tolist(), bits)


@pytest.mark.parametrize(
    ("bits", "codes", "words"),
    [
        (4, [1, 2, 3, 4, 5, 6, 7, 8], [0x87654321]),
        (2, [0, 1, 2, 3] * 4, [0xE4E4E4E4]),
        (8, [0x11, 0x22, 0x33, 0xFF], [0xFF332211]),
        # The eleventh code of three bits lies in two words: two bits end the first, the top bit begins the next.
        (3, [0] * 10 + [7] + [0] * 21, [0xC0000000, 0x00000001, 0]),
        (3, [0] * 21 + [5] + [0] * 10, [0, 0x80000000, 0x00000002]),
        (6, [0] * 5 + [0b100110] + [0] * 10, [0x80000000, 0x00000009, 0]),
        (5, [0] * 6 + [0b10101] + [0] * 25, [0x40000000, 0x00000005, 0, 0, 0]),
        (7, [0] * 4 + [0x7F] + [0] * 27, [0xF0000000, 0x00000007, 0, 0, 0, 0, 0]),
    ],
)
def test_words_written_by_hand(bits: int, codes: list[int], words: list[int]) -> None:
    packed = stream.pack(torch.tensor(codes), bits, axis=0)
    assert [word & 0xFFFFFFFF for word in packed.tolist()] == words
    assert stream.unpack(packed, bits, axis=0).tolist() == codes


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="12 codes of 4 bits do not fill whole words; 8 do"):
        stream.pack(torch.zeros(12, dtype=torch.uint8), 4, axis=0)
    with pytest.raises(ValueError, match="codes from 0 to 8 do not fit into 3 bits"):
        stream.pack(torch.arange(32) % 9, 3, axis=0)
    with pytest.raises(ValueError, match="codes from -1 to 0"):
        stream.pack(-torch.eye(8, dtype=torch.int8), 4, axis=0)
    with pytest.raises(ValueError, match="4 words do not hold whole runs of 3-bit codes; 3 do"):
        stream.unpack(torch.zeros(4, dtype=torch.int32), 3, axis=0)
    with pytest.raises(ValueError, match="codes of 9 bits"):
        stream.period(9)
