"""AWQ's tensors against a slow twin and words written by hand."""

from __future__ import annotations

import pytest
import torch

from hermetiq.formats import awq
from hermetiq.formats.packed import Malformed
from hermetiq.quantize.spec import parse
from tests.formats.layers import quantized
from tests.oracles import awq_bytes

RECIPE = parse("awq:4bit-g32").linear


@pytest.mark.parametrize("shape", [(8, 96), (40, 128), (64, 32)])
def test_tensors_are_those_of_the_slow_twin_and_read_back(shape: tuple[int, int]) -> None:
    layer = quantized(shape, RECIPE)
    tensors = awq.pack(layer, RECIPE)
    words, zeros = awq_bytes.packed(layer.codes.T.tolist()), awq_bytes.packed(layer.zeros.tolist())
    assert (tensors["qweight"].tolist(), tensors["qzeros"].tolist()) == (words, zeros)
    found = awq.unpack(tensors, group_size=32)
    assert torch.equal(found.codes, layer.codes)
    assert torch.equal(found.zeros, layer.zeros)
    assert found.dequantize().tolist() == awq_bytes.dequantized(words, zeros, layer.scales.tolist(), 32)
    parts = awq.layout(shape, shape[1] // 32)
    assert {name: (p.shape, p.dtype) for name, p in parts.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
    }


def test_a_word_written_by_hand() -> None:
    layer = quantized((8, 32), RECIPE)
    layer.codes[:, 0] = torch.arange(8)
    layer.zeros[0] = torch.arange(8, 16)
    tensors = awq.pack(layer, RECIPE)
    # Columns 7 5 3 1 6 4 2 0, from the highest nibble down.
    assert int(tensors["qweight"][0, 0]) & 0xFFFFFFFF == 0x75316420
    assert int(tensors["qzeros"][0, 0]) & 0xFFFFFFFF == 0xFDB9ECA8


def test_a_bias_is_stored_as_float16() -> None:
    tensors = awq.pack(quantized((8, 32), RECIPE), RECIPE, torch.linspace(-1, 1, 8))
    assert torch.equal(tensors["bias"], torch.linspace(-1, 1, 8).to(torch.float16))


def test_what_the_format_has_no_place_for_is_refused() -> None:
    with pytest.raises(ValueError, match="12 output columns; AWQ stores eight to a word"):
        awq.pack(quantized((12, 32), RECIPE), RECIPE)
    scattered = parse("gptq:4bit-g32-actorder").linear
    with pytest.raises(ValueError, match="another order of groups than side by side"):
        awq.pack(quantized((8, 96), scattered), RECIPE)


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("qweight", torch.zeros((96, 5)), "float32, expected torch.int32"),
        ("qweight", torch.zeros((90, 5), dtype=torch.int32), "a multiple of the group size, 32"),
        ("qzeros", torch.zeros((2, 5), dtype=torch.int32), r"shape \(2, 5\), expected shape \(3, 5\)"),
        ("scales", torch.ones((3, 5)).half(), r"shape \(3, 5\), expected shape \(3, 40\)"),
        ("scales", torch.zeros((3, 40)).half(), "120 of 120 zero, NaN or infinite"),
    ],
)
def test_what_is_malformed_is_named_by_its_part(part: str, tensor: torch.Tensor, message: str) -> None:
    tensors = awq.pack(quantized((40, 96), RECIPE), RECIPE)
    with pytest.raises(Malformed, match=message) as malformed:
        awq.unpack(tensors | {part: tensor}, group_size=32)
    assert malformed.value.part == part


def test_the_configuration_is_what_readers_look_for() -> None:
    assert awq.config(parse("awq:4bit-g64").linear) == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }
