"""EXL2's tensors against a slow twin and words written by hand; what the reader could not use is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hermetiq.formats import exl2
from hermetiq.formats.packed import Malformed
from hermetiq.quantize.ladder import LADDER, Groups, Rung, stored_bits
from hermetiq.quantize.result import MixedLinear
from hermetiq.quantize.spec import parse
from tests.formats.layers import mixed
from tests.oracles import exl2_bytes

SHAPE = (32, 96)
GROUPS: Groups = ((5, 32), (3, 32), (2, 32))


def trimmed(layer: MixedLinear, out: int) -> MixedLinear:
    return replace(layer, codes=layer.codes[:out], indices=layer.indices[:, :out])


def assert_same(found: MixedLinear, expected: MixedLinear) -> None:
    for part in ("codes", "indices", "scale_max", "order"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part
        assert getattr(found, part).dtype == getattr(expected, part).dtype, part
    assert found.groups == expected.groups


@pytest.mark.parametrize("rung", LADDER, ids=str)
# Whole groups and nothing to pad; a short last group and rows to pad.
@pytest.mark.parametrize("shape", [(32, 128), (9, 224)])
def test_tensors_are_those_of_the_slow_twin_and_read_back(shape: tuple[int, int], rung: Rung) -> None:
    layer = mixed(shape, rung.groups(shape[1]))
    tensors = exl2.pack(layer)
    order, groups = layer.order.tolist(), list(layer.groups)
    slow = {
        "q_weight": exl2_bytes.q_weight(layer.codes.tolist(), order, groups),
        "q_scale": exl2_bytes.q_scale(layer.indices.tolist()),
        "q_scale_max": layer.scale_max.tolist(),
        "q_groups": exl2_bytes.q_groups(groups),
        "q_invperm": exl2_bytes.q_invperm(order),
    }
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == slow
    found = exl2.unpack(tensors)
    assert_same(trimmed(found, shape[0]), layer)
    assert found.dequantize().tolist() == exl2_bytes.dequantized(*slow.values())


def test_words_written_by_hand() -> None:
    """Columns stored from last to first: 32 of eight bits counting up, then 32 of three bits from 0 to 7 over again."""
    order = list(range(63, -1, -1))
    stored = [*range(32), *[k % 8 for k in range(32)]]
    layer = MixedLinear(
        codes=torch.tensor([stored[::-1]] * 32, dtype=torch.uint8),
        indices=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7] * 4, [15] * 32], dtype=torch.uint8),
        scale_max=torch.tensor([0.5, -256.0]).half(),
        order=torch.tensor(order, dtype=torch.int32),
        groups=((8, 32), (3, 32)),
    )
    tensors = exl2.pack(layer)
    eight = [0x03020100 + 0x04040404 * k for k in range(8)]
    three = [0x88FAC688, 0xC688FAC6, 0xFAC688FA]
    assert [word & 0xFFFFFFFF for word in tensors["q_weight"][:, 31].tolist()] == eight + three
    assert [word & 0xFFFFFFFF for word in tensors["q_scale"][:, 3].tolist()] == [0x76543210, 0xFFFFFFFF]
    assert tensors["q_groups"].tolist() == [8, 0, 3, 8]
    assert tensors["q_invperm"].tolist() == order
    weights = exl2.unpack(tensors).dequantize()
    # Stored first: code 0 of eight bits is -128 steps of (2 + 1)^2 * (0.5 / 256) in the third row.
    assert weights[2, 63] == -128 * 9 * 0.5 / 256
    # Stored last: code 7 of three bits is 3 steps of 16^2 * (-256 / 256).
    assert weights[2, 0] == 3 * 256 * -1


@st.composite
def layers(draw: st.DrawFn) -> MixedLinear:
    widths = sorted(draw(st.lists(st.sampled_from(exl2.WIDTHS), min_size=1, max_size=5)), reverse=True)
    groups = [(bits, 32 * draw(st.integers(1, 3))) for bits in widths]
    if widths[-1] == 2 and draw(st.booleans()):
        groups.append((2, 16))
    shape = (draw(st.integers(1, 70)), sum(size for _, size in groups))
    return mixed(shape, tuple(groups), seed=draw(st.integers(0, 99)))


@settings(max_examples=40, deadline=None)
@given(layers())
def test_whatever_the_reader_takes_is_read_back(layer: MixedLinear) -> None:
    tensors = exl2.pack(layer)
    out = len(layer.codes)
    found = exl2.unpack(tensors)
    assert_same(trimmed(found, out), layer)
    assert torch.equal(found.dequantize()[:out], layer.dequantize())
    assert not found.dequantize()[out:].any()


@pytest.mark.parametrize("rung", LADDER, ids=str)
def test_the_layout_is_that_of_the_tensors_and_of_the_size_that_is_counted(rung: Rung) -> None:
    layer = mixed((64, 160), rung.groups(160))
    tensors = exl2.pack(layer)
    parts = exl2.layout((64, 160), layer.groups)
    assert list(tensors) == list(parts)
    assert all((tuple(tensors[name].shape), tensors[name].dtype) == (p.shape, p.dtype) for name, p in parts.items())
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert 8 * sum(tensor.nbytes for tensor in tensors.values()) == stored_bits(layer.groups, 64)


def test_a_shape_is_known_from_headers_alone() -> None:
    tensors = exl2.pack(mixed((40, 96), GROUPS))
    assert exl2.shape_of({name: tensor.to("meta") for name, tensor in tensors.items()}) == (64, 96)


def test_a_bias_is_stored_as_float16_and_padded_like_the_layer() -> None:
    bias = exl2.pack(mixed((40, 96), GROUPS), torch.linspace(-1, 1, 40))["bias"]
    assert torch.equal(bias[:40], torch.linspace(-1, 1, 40).to(torch.float16))
    assert bias[40:].tolist() == [0] * 24


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (((7, 64),), "codes of 7 bits"),
        (((2, 32), (3, 32)), "widths that rise"),
        (((4, 48), (4, 16)), "a group of 48 columns"),
        (((4, 48),), "a group of 48 columns"),
        (((2, 16), (2, 32)), "a group of 16 columns"),
        (((2, 40),), "a group of 40 columns"),
        (((4, 32),), "groups of 32 columns for 64"),
        (((4, 1 << 17),), "131072 columns, more than 65536"),
    ],
)
def test_groups_that_the_reader_cannot_take_have_no_layout(groups: Groups, message: str) -> None:
    width = 1 << 17 if groups[0][1] > 64 else sum(size for _, size in groups) if "group of" in message else 64
    with pytest.raises(ValueError, match=message):
        exl2.layout((32, width), groups)


def test_codes_and_indices_that_do_not_fit_are_refused() -> None:
    layer = mixed(SHAPE, GROUPS)
    with pytest.raises(ValueError, match="do not fit into 5 bits"):
        exl2.pack(replace(layer, codes=layer.codes + 32))
    with pytest.raises(ValueError, match="do not fit into 4 bits"):
        exl2.pack(replace(layer, indices=layer.indices + 16))
    with pytest.raises(ValueError, match="q_scale_max"):
        exl2.pack(replace(layer, scale_max=layer.scale_max[1:]))


def first(value: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([tensor.new_tensor([value]), tensor[1:]])


def pairs(*values: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.new_tensor(values)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("q_weight", lambda t: t.flatten(), "a matrix"),
        ("q_weight", lambda t: t[:, :31], "31 columns, expected a multiple of 32"),
        ("q_weight", lambda t: t.float(), "torch.float32"),
        ("q_scale", lambda t: t[:, :3], r"shape \(3, 3\), expected shape \(3, 4\)"),
        ("q_scale", lambda t: t[:0], "a matrix"),
        ("q_scale_max", lambda t: t[:2], r"shape \(2,\)"),
        ("q_scale_max", lambda t: t.float(), "torch.float32"),
        ("q_scale_max", lambda t: t.fill_(torch.nan), "3 of 3 NaN or infinite"),
        ("q_scale_max", lambda t: t / 0, "3 of 3 NaN or infinite"),
        ("q_invperm", lambda t: t[:0], "a vector"),
        ("q_invperm", lambda t: t.reshape(3, 32), "a vector"),
        ("q_invperm", lambda t: t.long(), "torch.int64"),
        ("q_invperm", lambda t: t.clamp(max=94), "each of 0 to 95 once"),
        ("q_invperm", lambda t: t - 1, "each of 0 to 95 once"),
        ("q_invperm", lambda t: t + 1, "each of 0 to 95 once"),
        ("q_groups", lambda t: t[:4], r"shape \(4,\)"),
        ("q_groups", lambda t: t.int(), "torch.int32"),
        ("q_groups", first(7), "7 bits in rows 0 to 5"),
        ("q_groups", first(0), "0 bits in rows 0 to 5"),
        ("q_groups", first(-5), "-5 bits in rows 0 to 5"),
        ("q_groups", first(6), "6 bits in rows 0 to 5"),
        ("q_groups", first(2), "widths that rise"),
        ("q_groups", pairs(4, 1, 3, 5, 2, 8), "4 bits in rows 1 to 5"),
        ("q_groups", pairs(5, 0, 3, 5, 2, 5), "3 bits in rows 5 to 5"),
        ("q_groups", pairs(5, 0, 3, 5, 2, 3), "3 bits in rows 5 to 3"),
        ("q_groups", pairs(5, 0, 5, 5, 2, 10), "2 bits in rows 10 to 10"),
        ("q_groups", pairs(5, 0, 3, 5, 2, 99), "3 bits in rows 5 to 99"),
        ("q_groups", pairs(5, 0, 3, 5, 2, 9), "3 bits in rows 5 to 9"),
        ("q_groups", pairs(4, 0, 4, 5, 2, 8), "a group of 40 columns"),
        ("q_groups", pairs(5, 0, 2, 5, 2, 6), "a group of 16 columns"),
        ("q_groups", pairs(5, 0, 2, 5, 2, 7), "groups of 112 columns for 96"),
    ],
)
def test_what_is_malformed_is_named_by_its_part(part: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    tensors = exl2.pack(mixed(SHAPE, GROUPS))
    with pytest.raises(Malformed, match=message) as malformed:
        exl2.unpack(tensors | {part: change(tensors[part])})
    assert malformed.value.part == part


@pytest.mark.parametrize("part", ["q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm"])
def test_a_missing_part_is_named(part: str) -> None:
    tensors = exl2.pack(mixed(SHAPE, GROUPS))
    del tensors[part]
    with pytest.raises(Malformed, match=f"{part}: found no such tensor"):
        exl2.shape_of(tensors)


def test_the_configuration_has_the_keys_of_the_formats_own_converter() -> None:
    found: dict[str, Any] = exl2.config(parse("exl2:4.65bpw-h8").mixed, rows=128, length=2048, dataset="built-in")
    assert found.pop("meta")["quantizer"][0].startswith("hermetiq:")
    assert found == {
        "quant_method": "exl2",
        "version": "0.3.2",
        "bits": 4.65,
        "head_bits": 8,
        "calibration": {"rows": 128, "length": 2048, "dataset": "built-in"},
    }
