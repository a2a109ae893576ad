"""AWQ's stored form of a linear layer, version `gemm` (docs/formats.md, AWQ).

`W = scale * (code - zero)`, four bits, groups side by side. Codes lie along the output, and within each word its eight
columns are interleaved, which is what the format's first kernel wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from hermetiq.quantize.result import QuantizedLinear
from hermetiq.quantize.spec import LinearRecipe

from . import bits as stream
from .packed import Malformed, Part, groups_in_order, matrix, require_layout, require_steps

BITS: Final = 4
NIBBLES: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of a word's eight columns lies in each nibble, the lowest first."""
_PLACES: Final = tuple(NIBBLES.index(column) for column in range(8))


def layout(shape: tuple[int, int], groups: int) -> dict[str, Part]:
    """The parts of a layer of `shape` (out, in), without its bias, in the order they are stored."""
    height, width = shape
    return {
        "qweight": Part((width, height // 8), torch.int32),
        "qzeros": Part((groups, height // 8), torch.int32),
        "scales": Part((groups, height), torch.float16),
    }


def pack(linear: QuantizedLinear, recipe: LinearRecipe, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The stored tensors of a layer, by the last part of their names.

    Args:
        bias: (out,), any float type; stored as float16.

    Raises:
        ValueError: groups that do not lie side by side, or a shape that does not fill whole words.
    """
    width = len(linear.group_of)
    if not torch.equal(linear.group_of, groups_in_order(width, recipe.group_size or width, linear.group_of.device)):
        raise ValueError("AWQ has no place for another order of groups than side by side")
    tensors = {
        "qweight": _pack(linear.codes.T),
        "qzeros": _pack(linear.zeros),
        "scales": linear.scales.to(torch.float16).contiguous(),
    }
    return tensors if bias is None else tensors | {"bias": bias.to(torch.float16).contiguous()}


def shape_of(tensors: Mapping[str, Tensor], *, group_size: int | None) -> tuple[int, int]:
    """(out, in) of a stored layer. Only shapes and types are looked at, so the tensors may be of the `meta` device.

    Raises:
        Malformed: a part is missing, or has another shape or type than `layout` says.
    """
    width, words = matrix(tensors, "qweight")
    group = group_size or width
    if width % group:
        raise Malformed("qweight", f"{width} rows", f"a multiple of the group size, {group}")
    require_layout(tensors, layout((words * 8, width), width // group))
    return words * 8, width


def unpack(tensors: Mapping[str, Tensor], *, group_size: int | None) -> QuantizedLinear:
    """Read a layer's stored tensors, whichever tool wrote them; parts that `layout` does not name are left alone.

    Raises:
        Malformed: a part is missing or makes no sense.
    """
    _, width = shape_of(tensors, group_size=group_size)
    require_steps(tensors["scales"])
    return QuantizedLinear(
        codes=_unpack(tensors["qweight"]).T.contiguous(),
        scales=tensors["scales"],
        zeros=_unpack(tensors["qzeros"]),
        group_of=groups_in_order(width, group_size or width, tensors["qweight"].device),
        bits=BITS,
    )


def config(recipe: LinearRecipe) -> dict[str, Any]:
    """`quantization_config` of config.json, and all of `quant_config.json`."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": recipe.bits,
        "group_size": -1 if recipe.group_size is None else recipe.group_size,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }


def _pack(
    codes: Tensor,  # (rows, out)
) -> Tensor:  # (rows, out / 8) int32
    if codes.shape[1] % 8:
        raise ValueError(f"{codes.shape[1]} output columns; AWQ stores eight to a word")
    return stream.pack(_reordered(codes, NIBBLES), BITS, axis=1)


def _unpack(
    words: Tensor,  # (rows, out / 8) int32
) -> Tensor:  # (rows, out) uint8
    return _reordered(stream.unpack(words, BITS, axis=1), _PLACES)


def _reordered(
    codes: Tensor,  # (rows, out)
    order: Sequence[int],
) -> Tensor:  # (rows, out)
    """Each run of eight columns in another order."""
    return codes.reshape(len(codes), -1, 8)[..., list(order)].reshape(codes.shape)
