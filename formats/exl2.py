"""EXL2's stored form of a linear layer (docs/formats.md, EXL2).

`W[o, order[r]] = (code[r, o] - 2^(bits[g]-1)) * scale[g, o]`, where `g` is the group of the stored row `r`. Each group
has its own width and widths never rise, because the one reader, exllamav2, unpacks them by width, the widest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from hermetiq import __version__
from hermetiq.quantize.ladder import Groups
from hermetiq.quantize.result import MixedLinear
from hermetiq.quantize.spec import MixedRecipe

from . import bits as stream
from .packed import Malformed, Part, matrix, require_layout, vector

WIDTHS: Final = (8, 6, 5, 4, 3, 2)
"""Bits of a code that the reader knows."""
COLUMNS: Final = 32
"""What the columns of a layer and of each group are multiples of: the reader's kernels take as many at a time."""
MOST_COLUMNS: Final = 1 << 16
"""The reader holds the order in 16 bits."""
ROWS: Final = 32
"""What `out` is padded to a multiple of."""
READER: Final = "0.3.2"
"""The version of exllamav2 whose converter writes what is written here; the last one."""
_SCALE_BITS: Final = 4


def padded(out: int) -> int:
    """Rows of a layer as they are stored."""
    return -(-out // ROWS) * ROWS


def layout(shape: tuple[int, int], groups: Groups) -> dict[str, Part]:
    """The parts of a layer of `shape` (out, in), without its bias, in the order they are stored.

    Raises:
        ValueError: groups that the reader cannot take, or that do not make up the columns.
    """
    height, width = shape
    if wrong := _misfit(groups, width):
        raise ValueError(wrong)
    return _parts(sum(bits * columns // 32 for bits, columns in groups), padded(height), len(groups), width)


def pack(linear: MixedLinear, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The stored tensors of a layer, by the last part of their names.

    Args:
        bias: (out,), any float type; stored as float16 and padded like the layer, as the reader holds it against it.

    Raises:
        ValueError: as `layout`; codes or scale indices that do not fit their bits.
    """
    height, width = linear.codes.shape
    parts = layout((height, width), linear.groups)
    padding = (0, padded(height) - height)
    rows = linear.codes[:, linear.order.long()].T
    runs = torch.split(rows, [columns for _, columns in _runs(linear.groups)])
    # A code of the middle is a weight of zero, whatever its scale.
    words = [
        stream.pack(pad(run, padding, value=1 << (bits - 1)), bits, axis=0)
        for (bits, _), run in zip(_runs(linear.groups), runs, strict=True)
    ]
    starts = _starts(linear.groups)
    tensors = {
        "q_weight": torch.cat(words),
        "q_scale": stream.pack(pad(linear.indices, padding), _SCALE_BITS, axis=1),
        "q_scale_max": linear.scale_max.to(torch.float16).contiguous(),
        "q_groups": torch.tensor(
            [(bits, start) for (bits, _), start in zip(linear.groups, starts, strict=True)],
            dtype=torch.int16,
            device=rows.device,
        ).flatten(),
        "q_invperm": torch.argsort(linear.order).to(torch.int32),
    }
    require_layout(tensors, parts)
    return tensors if bias is None else tensors | {"bias": pad(bias.to(torch.float16), padding)}


def shape_of(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(out, in) of a stored layer, `out` with its padding. Shapes and types alone are looked at, so the tensors may be
    of the `meta` device.

    Raises:
        Malformed: a part is missing, or its shape or type does not fit the others.
    """
    words, height = matrix(tensors, "q_weight")
    if height % ROWS:
        raise Malformed("q_weight", f"{height} columns", f"a multiple of {ROWS}")
    groups, width = matrix(tensors, "q_scale")[0], vector(tensors, "q_invperm")
    require_layout(tensors, _parts(words, height, groups, width))
    return height, width


def unpack(tensors: Mapping[str, Tensor]) -> MixedLinear:
    """Read a layer's stored tensors, whichever tool wrote them; parts that `layout` does not name are left alone.

    The layer has all stored rows: nothing but its model knows how many of them are padding.

    Raises:
        Malformed: a part is missing or makes no sense.
    """
    _, width = shape_of(tensors)
    scale_max, inverse = tensors["q_scale_max"], tensors["q_invperm"].long()
    if count := int((~scale_max.isfinite()).sum()):
        raise Malformed("q_scale_max", f"{count} of {len(scale_max)} NaN or infinite", "finite scales")
    if not torch.equal(inverse.sort().values, torch.arange(width, device=inverse.device)):
        raise Malformed("q_invperm", "a column that is named twice or not at all", f"each of 0 to {width - 1} once")
    groups = _read_groups(tensors["q_groups"].tolist(), words=len(tensors["q_weight"]))
    if wrong := _misfit(groups, width):
        raise Malformed("q_groups", wrong, "groups as exllamav2 reads them")
    runs = torch.split(tensors["q_weight"], [bits * columns // 32 for bits, columns in _runs(groups)])
    rows = [stream.unpack(run, bits, axis=0) for (bits, _), run in zip(_runs(groups), runs, strict=True)]
    return MixedLinear(
        codes=torch.cat(rows)[inverse].T.contiguous(),
        indices=stream.unpack(tensors["q_scale"], _SCALE_BITS, axis=1),
        scale_max=scale_max,
        order=torch.argsort(inverse).to(torch.int32),
        groups=groups,
    )


def config(recipe: MixedRecipe, *, rows: int, length: int, dataset: str) -> dict[str, Any]:
    """`quantization_config` of config.json, with the keys of exllamav2's converter. No reader minds `meta`.

    Args:
        rows, length: of the calibration, in token sequences and tokens.
        dataset: name of the calibration's corpus.
    """
    return {
        "quant_method": "exl2",
        "version": READER,
        "bits": recipe.bpw,
        "head_bits": recipe.head_bits,
        "calibration": {"rows": rows, "length": length, "dataset": dataset},
        "meta": {"quantizer": [f"hermetiq:{__version__}"]},
    }


def _parts(words: int, height: int, groups: int, width: int) -> dict[str, Part]:
    return {
        "q_weight": Part((words, height), torch.int32),
        "q_scale": Part((groups, height * _SCALE_BITS // 32), torch.int32),
        "q_scale_max": Part((groups,), torch.float16),
        "q_groups": Part((2 * groups,), torch.int16),
        "q_invperm": Part((width,), torch.int32),
    }


def _misfit(groups: Groups, width: int) -> str:
    """What the reader could not take about the groups of a layer; empty where all is well."""
    widths = [bits for bits, _ in groups]
    if unknown := sorted(set(widths) - set(WIDTHS)):
        return f"codes of {unknown[0]} bits"
    if widths != sorted(widths, reverse=True):
        return "widths that rise"
    # Only the kernels of two bits take sixteen columns at a time, and only at the end can they stop there.
    short = [columns for bits, columns in groups[:-1] if columns % COLUMNS]
    short += [columns for bits, columns in groups[-1:] if columns % (COLUMNS // 2 if bits == 2 else COLUMNS)]
    if short:
        return f"a group of {short[0]} columns"
    if (total := sum(columns for _, columns in groups)) != width:
        return f"groups of {total} columns for {width}"
    return f"{width} columns, more than {MOST_COLUMNS}" if width > MOST_COLUMNS else ""


def _runs(groups: Groups) -> Groups:
    """Neighbouring groups of one width taken together: as each fills whole words, their codes are one stream."""
    return tuple((bits, sum(columns for _, columns in run)) for bits, run in groupby(groups, key=lambda each: each[0]))


def _starts(groups: Groups) -> Iterator[int]:
    """The first row of words of each group."""
    row = 0
    for bits, columns in groups:
        yield row
        row += bits * columns // 32


def _read_groups(pairs: Sequence[int], *, words: int) -> Groups:
    """Width and columns of each group from pairs of its width and its first row of `words`.

    Raises:
        Malformed: rows that do not follow each other, or hold no whole number of codes.
    """
    widths, starts = pairs[::2], pairs[1::2]
    groups = []
    for bits, start, end in zip(widths, starts, [*starts[1:], words], strict=True):
        if bits not in WIDTHS or start >= end or starts[0] or (end - start) * 32 % bits:
            found = f"{bits} bits in rows {start} to {end}"
            raise Malformed("q_groups", found, f"whole codes of {WIDTHS} bits, row after row from 0 to {words}")
        groups.append((bits, (end - start) * 32 // bits))
    return tuple(groups)
