"""GPTQ's stored form of a linear layer, versions 1 and 2 (docs/formats.md, GPTQ).

`W[o, i] = scales[g_idx[i], o] * (code[i, o] - zero[g_idx[i], o])`. Version 1 stores each zero-point less one. A
zero-point of 0 has no form there that two readers agree on: some wrap round, others carry into the next column. It is
refused when it would be written and when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq import __version__
from hermetiq.errors import CheckFailed
from hermetiq.quantize.result import QuantizedLinear
from hermetiq.quantize.spec import LinearRecipe

from . import bits as stream
from .packed import Malformed, Part, groups_in_order, matrix, require_layout, require_steps

WIDTHS: Final = (2, 3, 4, 8)
"""Bits of a code that readers of the format know."""
ZERO_OFFSETS: Final = {"gptq": 1, "gptq_v2": 0}
"""What each `checkpoint_format` takes off a zero-point before storing it."""


def layout(shape: tuple[int, int], bits: int, groups: int) -> dict[str, Part]:
    """The parts of a layer of `shape` (out, in), without its bias, in the order they are stored."""
    height, width = shape
    return {
        "qweight": Part((width * bits // 32, height), torch.int32),
        "qzeros": Part((groups, height * bits // 32), torch.int32),
        "scales": Part((groups, height), torch.float16),
        "g_idx": Part((width,), torch.int32),
    }


def pack(linear: QuantizedLinear, recipe: LinearRecipe, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The stored tensors of a layer, by the last part of their names.

    Args:
        bias: (out,), any float type; stored as float16.

    Raises:
        ValueError: a zero-point that the version cannot hold, or a shape that does not fill whole words.
    """
    if count := int((linear.zeros < recipe.zero_offset).sum()):
        raise ValueError(f"{count} zero-points are 0, which GPTQ v1 cannot store: keep them at 1 or above, or use v2")
    tensors = {
        "qweight": stream.pack(linear.codes.T, linear.bits, axis=0),
        "qzeros": stream.pack(linear.zeros - recipe.zero_offset, linear.bits, axis=1),
        "scales": linear.scales.to(torch.float16).contiguous(),
        "g_idx": linear.group_of.to(torch.int32).contiguous(),
    }
    return tensors if bias is None else tensors | {"bias": bias.to(torch.float16).contiguous()}


def shape_of(tensors: Mapping[str, Tensor], bits: int, *, group_size: int | None = None) -> tuple[int, int]:
    """(out, in) of a stored layer. Only shapes and types are looked at, so the tensors may be of the `meta` device.

    Args:
        group_size: columns of a group where `g_idx` is not stored; None for one group.

    Raises:
        Malformed: a part is missing, or has another shape or type than `layout` says.
        ValueError: `bits` is none of `WIDTHS`.
    """
    if bits not in WIDTHS:
        raise ValueError(f"codes of {bits} bits; GPTQ has {', '.join(map(str, WIDTHS))}")
    words, height = matrix(tensors, "qweight")
    width = words * 32 // bits
    if width % stream.period(bits):
        raise Malformed("qweight", f"{words} rows", f"whole runs of {stream.period(bits)} codes")
    groups = matrix(tensors, "scales")[0] if "g_idx" in tensors else -(-width // (group_size or width))
    parts = layout((height, width), bits, groups)
    require_layout(tensors, {name: part for name, part in parts.items() if name != "g_idx" or name in tensors})
    return height, width


def unpack(
    tensors: Mapping[str, Tensor], bits: int, zero_offset: int, *, group_size: int | None = None
) -> QuantizedLinear:
    """Read a layer's stored tensors, whichever tool wrote them; parts that `layout` does not name are left alone.

    Args:
        zero_offset: of the artifact's version, see `ZERO_OFFSETS`.
        group_size: as for `shape_of`.

    Raises:
        Malformed: a part is missing or makes no sense.
        ValueError: `bits` is none of `WIDTHS`.
    """
    _, width = shape_of(tensors, bits, group_size=group_size)
    require_steps(tensors["scales"])
    groups, group_of = len(tensors["scales"]), tensors.get("g_idx")
    if group_of is None:
        group_of = groups_in_order(width, group_size or width, tensors["qweight"].device)
    elif not 0 <= int(group_of.min()) <= int(group_of.max()) < groups:
        raise Malformed("g_idx", f"groups {int(group_of.min())} to {int(group_of.max())}", f"0 to {groups - 1}")
    return QuantizedLinear(
        codes=stream.unpack(tensors["qweight"], bits, axis=0).T.contiguous(),
        scales=tensors["scales"],
        zeros=read_zeros(tensors["qzeros"], bits, zero_offset),
        group_of=group_of,
        bits=bits,
    )


def read_zeros(
    qzeros: Tensor,  # (groups, out * bits / 32) int32
    bits: int,
    zero_offset: int,
) -> Tensor:  # (groups, out) uint8
    """Zero-points as a reader of the version takes them.

    Raises:
        Malformed: a stored value for which readers of the version have different zero-points.
    """
    stored = stream.unpack(qzeros, bits, axis=1)
    top = (1 << bits) - 1
    if zero_offset and (count := int((stored == top).sum())):
        expected = f"at most {top - 1}: readers of v1 take {top} as {top + 1}, as 0 or carry it into the next column"
        raise Malformed("qzeros", f"{count} stored zero-points of {top}", expected)
    return stored + zero_offset


def check_zeros(
    name: str,
    qzeros: Tensor,  # (groups, out * bits / 32) int32
    zeros: Tensor,  # (groups, out): what the solver chose
    config: Mapping[str, Any],
) -> None:
    """Read stored zero-points by what the artifact's own `quantization_config` says of them (U24).

    Raises:
        CheckFailed: they are others than were chosen, or not the middle of the codes in a symmetric artifact.
    """
    bits = config["bits"]
    try:
        read = read_zeros(qzeros, bits, ZERO_OFFSETS[config["checkpoint_format"]])
    except Malformed as error:
        raise CheckFailed(str(error), where=name) from error
    if not torch.equal(read, zeros.to(read.device)):
        count = int((read != zeros.to(read.device)).sum())
        raise CheckFailed(f"{count} zero-points read back as others in {config['checkpoint_format']}", where=name)
    if config["sym"] and bool((read != 1 << (bits - 1)).any()):
        raise CheckFailed(f"zero-points other than {1 << (bits - 1)} in a symmetric artifact", where=name)


def config(recipe: LinearRecipe, *, damp_percent: float) -> dict[str, Any]:
    """`quantization_config` of config.json, and all of `quantize_config.json`.

    Static groups lie in place, so to a reader they are no `desc_act`; `static_groups` records how they were made.
    """
    return {
        "quant_method": "gptq",
        "bits": recipe.bits,
        "group_size": -1 if recipe.group_size is None else recipe.group_size,
        "desc_act": recipe.order == "actorder",
        "static_groups": recipe.order == "static",
        "sym": recipe.symmetric,
        "damp_percent": damp_percent,
        "true_sequential": False,
        "lm_head": False,
        "checkpoint_format": next(name for name, offset in ZERO_OFFSETS.items() if offset == recipe.zero_offset),
        "meta": {"quantizer": [f"hermetiq:{__version__}"]},
    }
