"""GPTQ's tensors against a slow twin and words written by hand; what no reader could use is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hermetiq.errors import CheckFailed
from hermetiq.formats import gptq
from hermetiq.formats.packed import Malformed
from hermetiq.quantize.result import QuantizedLinear
from hermetiq.quantize.spec import parse
from tests.formats.layers import quantized
from tests.oracles import gptq_bytes

RECIPES = [
    f"{bits}bit-{group}{grid}{order}{version}"
    for bits in (2, 3, 4, 8)
    for group in ("g32", "channel")
    for grid in ("", "-asym")
    for order in ("", "-actorder")
    for version in ("", "-v2")
]
SHAPE = (64, 96)
V1 = parse("gptq:4bit-g32").linear


def assert_same(found: QuantizedLinear, expected: QuantizedLinear) -> None:
    for part in ("codes", "scales", "zeros", "group_of"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part


@pytest.mark.parametrize("text", RECIPES)
def test_tensors_are_those_of_the_slow_twin_and_read_back(text: str) -> None:
    recipe = parse(f"gptq:{text}").linear
    layer = quantized(SHAPE, recipe)
    tensors = gptq.pack(layer, recipe)
    words = gptq_bytes.qweight(layer.codes.tolist(), recipe.bits)
    stored = gptq_bytes.qzeros(layer.zeros.tolist(), recipe.bits, recipe.zero_offset)
    assert tensors["qweight"].tolist() == words
    assert tensors["qzeros"].tolist() == stored
    found = gptq.unpack(tensors, recipe.bits, recipe.zero_offset)
    assert_same(found, layer)
    slow = gptq_bytes.dequantized(
        words, stored, layer.scales.tolist(), layer.group_of.tolist(), recipe.bits, recipe.zero_offset
    )
    assert found.dequantize().tolist() == slow


@pytest.mark.parametrize("text", RECIPES)
def test_the_layout_is_that_of_the_tensors(text: str) -> None:
    recipe = parse(f"gptq:{text}").linear
    tensors = gptq.pack(quantized(SHAPE, recipe), recipe)
    parts = gptq.layout(SHAPE, recipe.bits, recipe.groups(SHAPE[1]))
    assert list(tensors) == list(parts)
    assert all((tuple(tensors[name].shape), tensors[name].dtype) == (p.shape, p.dtype) for name, p in parts.items())
    assert all(tensor.is_contiguous() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("4bit-g32", 0x77777777),
        ("4bit-g32-v2", 0x88888888),
        ("8bit-g32", 0x7F7F7F7F),
        ("8bit-g32-v2", 0x80808080),
        ("2bit-g32", 0x55555555),
        ("2bit-g32-v2", 0xAAAAAAAA),
    ],
)
def test_symmetric_zero_points_are_the_words_that_readers_expect(recipe: str, word: int) -> None:
    linear = parse(f"gptq:{recipe}").linear
    tensors = gptq.pack(quantized(SHAPE, linear), linear)
    assert {value & 0xFFFFFFFF for value in tensors["qzeros"].flatten().tolist()} == {word}


def test_a_bias_is_stored_as_float16() -> None:
    tensors = gptq.pack(quantized(SHAPE, V1), V1, torch.linspace(-1, 1, 64))
    assert torch.equal(tensors["bias"], torch.linspace(-1, 1, 64).to(torch.float16))


def test_a_zero_point_of_zero_is_refused_by_version_one_and_kept_by_version_two() -> None:
    recipe = parse("gptq:4bit-g32-asym-v2").linear
    layer = quantized(SHAPE, recipe)
    layer.zeros[1, 7] = 0
    assert_same(gptq.unpack(gptq.pack(layer, recipe), 4, 0), layer)
    with pytest.raises(ValueError, match="zero-points are 0, which GPTQ v1 cannot store"):
        gptq.pack(layer, replace(recipe, zero_offset=1))


def test_without_g_idx_groups_lie_side_by_side() -> None:
    layer = quantized(SHAPE, V1)
    tensors = gptq.pack(layer, V1)
    del tensors["g_idx"]
    assert_same(gptq.unpack(tensors, 4, 1, group_size=32), layer)
    with pytest.raises(Malformed, match=r"qzeros: found shape \(3, 8\), expected shape \(2, 8\)"):
        gptq.unpack(tensors, 4, 1, group_size=64)


def test_a_short_last_group_is_read_by_its_g_idx_and_by_its_group_size() -> None:
    layer = quantized((64, 96), parse("gptq:4bit-g64").linear)  # One group; the last 32 columns get another.
    scales = torch.cat([layer.scales, 2 * layer.scales])
    ragged = replace(layer, scales=scales, zeros=layer.zeros.repeat(2, 1), group_of=torch.arange(96).int() // 64)
    tensors = gptq.pack(ragged, V1)
    assert_same(gptq.unpack(tensors, 4, 1), ragged)
    del tensors["g_idx"]
    assert_same(gptq.unpack(tensors, 4, 1, group_size=64), ragged)


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("qweight", torch.zeros(4, dtype=torch.int32), "a matrix"),
        ("qweight", torch.zeros((12, 64)), "float32, expected torch.int32"),
        ("qzeros", torch.zeros((3, 7), dtype=torch.int32), r"shape \(3, 7\)"),
        ("qzeros", torch.full((3, 8), -1, dtype=torch.int32), "192 stored zero-points of 15"),
        ("scales", torch.full((3, 64), torch.nan).half(), "192 of 192 zero, NaN or infinite"),
        ("scales", torch.full((3, 64), torch.inf).half(), "192 of 192"),
        ("scales", torch.eye(64).half()[:3], "189 of 192"),
        ("scales", torch.ones((3, 64), dtype=torch.int32), "torch.int32"),
        ("scales", torch.ones((0, 64)).half(), "a matrix"),
        ("g_idx", torch.full((96,), 3, dtype=torch.int32), "groups 3 to 3, expected 0 to 2"),
        ("g_idx", -torch.ones(96, dtype=torch.int32), "groups -1 to -1"),
        ("g_idx", torch.zeros(95, dtype=torch.int32), r"shape \(95,\)"),
        ("g_idx", torch.zeros(96), "torch.float32"),
    ],
)
def test_what_is_malformed_is_named_by_its_part(part: str, tensor: torch.Tensor, message: str) -> None:
    tensors = gptq.pack(quantized(SHAPE, V1), V1)
    with pytest.raises(Malformed, match=message) as malformed:
        gptq.unpack(tensors | {part: tensor}, 4, 1)
    assert malformed.value.part == part


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_missing_part_is_named(part: str) -> None:
    tensors = gptq.pack(quantized(SHAPE, V1), V1)
    del tensors[part]
    with pytest.raises(Malformed, match=f"{part}: found no such tensor"):
        gptq.unpack(tensors, 4, 1)


def test_widths_of_no_reader_are_refused() -> None:
    with pytest.raises(ValueError, match="codes of 5 bits; GPTQ has 2, 3, 4, 8"):
        gptq.unpack({}, 5, 1)
    with pytest.raises(Malformed, match="qweight: found 4 rows, expected whole runs of 32 codes"):
        gptq.unpack({"qweight": torch.zeros((4, 32), dtype=torch.int32)}, 3, 1)


def stored(recipe: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    linear = parse(f"gptq:{recipe}").linear
    layer = quantized(SHAPE, linear)
    return gptq.pack(layer, linear)["qzeros"], layer.zeros, gptq.config(linear, damp_percent=0.01)


@pytest.mark.parametrize("recipe", RECIPES)
def test_zero_points_that_were_just_stored_pass_the_check(recipe: str) -> None:
    gptq.check_zeros("a.b", *stored(recipe))


@pytest.mark.parametrize("recipe", ["4bit-g32", "4bit-g32-v2", "3bit-g32-asym"])
def test_a_version_that_is_not_the_stored_one_fails_the_check(recipe: str) -> None:
    qzeros, zeros, config = stored(recipe)
    other = "gptq" if config["checkpoint_format"] == "gptq_v2" else "gptq_v2"
    with pytest.raises(CheckFailed, match=f"a.b: 192 zero-points read back as others in {other}"):
        gptq.check_zeros("a.b", qzeros, zeros, config | {"checkpoint_format": other})


def test_an_asymmetric_grid_in_a_symmetric_artifact_fails_the_check() -> None:
    qzeros, zeros, config = stored("4bit-g32-asym")
    with pytest.raises(CheckFailed, match="zero-points other than 8 in a symmetric artifact"):
        gptq.check_zeros("a.b", qzeros, zeros, config | {"sym": True})


def test_zero_points_that_the_version_cannot_mean_fail_the_check() -> None:
    _, zeros, config = stored("4bit-g32")
    with pytest.raises(CheckFailed, match=r"a\.b: qzeros: found 192 stored zero-points of 15"):
        gptq.check_zeros("a.b", torch.full((3, 8), -1, dtype=torch.int32), zeros, config)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("4bit-g64", {"bits": 4, "group_size": 64, "desc_act": False, "static_groups": True, "sym": True}),
        ("3bit-channel-asym-plain-v2", {"bits": 3, "group_size": -1, "static_groups": False, "sym": False}),
        ("4bit-g64-actorder", {"desc_act": True, "static_groups": False, "checkpoint_format": "gptq"}),
        ("8bit-g32-v2", {"checkpoint_format": "gptq_v2", "quant_method": "gptq", "lm_head": False}),
    ],
)
def test_the_configuration_says_what_was_done(recipe: str, expected: dict[str, Any]) -> None:
    found = gptq.config(parse(f"gptq:{recipe}").linear, damp_percent=0.05)
    assert found["damp_percent"] == 0.05
    assert found | expected == found
