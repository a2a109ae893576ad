"""What one pass over a tensor shows: NaN and infinity (rule `weight-nan`), and what float16 has no room for.

One NaN spreads to every logit, and float16 makes an infinity of what it has no number for, or nothing of a whole row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from hermetiq.errors import Finding, Severity
from hermetiq.rules import finding

F16_BEYOND: Final = 65520.0
"""The smallest magnitude that float16 rounds to infinity; its largest number is 65504."""
F16_NOTHING: Final = 2.0**-25
"""The largest magnitude that float16 rounds to zero: half of its smallest number, the tie going to zero."""
_CHUNK = 1 << 22
"""Values looked at together when they are counted, so that the masks stay small."""


@dataclass(frozen=True)
class Extent:
    """The values of one tensor, as far as a rule asks. Without finite values alone, nothing is said of float16."""

    values: int
    non_finite: int
    beyond: int = 0
    """Values that float16 makes infinite."""
    largest: float = 0.0
    """Magnitude."""
    vanishing: tuple[int, ...] = ()
    """Rows that are not zero and that float16 rounds to zero; a vector is one row."""


def extent(
    tensor: Tensor,  # any shape, any float dtype
) -> Extent:
    """Look at every value once.

    `aminmax` carries a NaN through and shows an infinity as an extreme, so the usual tensor takes one pass without a
    temporary, at the speed of memory; only what is wrong is counted.
    """
    count = tensor.numel()
    if not count:
        return Extent(0, 0)
    largest = max(abs(float(extreme)) if extreme.isfinite() else torch.inf for extreme in torch.aminmax(tensor))
    if largest == torch.inf:
        return Extent(count, count - sum(int(torch.isfinite(part).sum()) for part in _parts(tensor)))
    if tensor.dtype is torch.float16:
        return Extent(count, 0, largest=largest)
    beyond = sum(int((part.abs() >= F16_BEYOND).sum()) for part in _parts(tensor)) if largest >= F16_BEYOND else 0
    return Extent(count, 0, beyond, largest, tuple(_vanishing(tensor)))


def non_finite(
    tensor: Tensor,  # any shape, any float dtype
) -> int:
    """How many values are NaN or infinite."""
    return extent(tensor).non_finite


def check_finite(
    name: str,
    tensor: Tensor,  # any shape, any float dtype
    file: str,
) -> Finding | None:
    """A `weight-nan` finding for the tensor `name` of `file`, or None if all its values are finite."""
    return nan_finding(name, extent(tensor), file)


def check_narrow(
    name: str,
    tensor: Tensor,  # any shape, any float dtype
    file: str,
) -> Finding | None:
    """An `f16-overflow` error for a tensor that is to be kept in float16, or None if it can be."""
    return f16_finding(name, extent(tensor), file, severity="error")


def nan_finding(name: str, seen: Extent, file: str) -> Finding | None:
    """`weight-nan`, if there is a value that is no finite number."""
    if not seen.non_finite:
        return None
    found = f"{seen.non_finite} of {seen.values} values NaN or infinite"
    return finding("weight-nan", file=file, field=name, found=found, expected="finite numbers")


def f16_finding(name: str, seen: Extent, file: str, *, severity: Severity | None = None) -> Finding | None:
    """`f16-overflow`, if float16 makes infinity of a value or zeros of a row."""
    faults = []
    if seen.beyond:
        faults.append(f"{seen.beyond} of {seen.values} values beyond 65504, the largest {seen.largest:.6g}")
    if seen.vanishing:
        more = f" and {len(seen.vanishing) - 1} more" if seen.vanishing[1:] else ""
        faults.append(f"row {seen.vanishing[0]}{more} nothing but values that float16 rounds to zero")
    if not faults:
        return None
    return finding(
        "f16-overflow",
        file=file,
        field=name,
        found="; ".join(faults),
        expected="values that float16 can hold",
        severity=severity,
    )


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor.reshape(-1), _CHUNK)


def _vanishing(tensor: Tensor) -> Iterator[int]:
    """Rows of nothing but tiny values. Hardly any begins with one, so the first column tells which to look at."""
    rows = tensor.reshape(len(tensor), -1) if tensor.dim() > 1 else tensor.reshape(1, -1)
    for some in torch.split((rows[:, 0].abs() <= F16_NOTHING).nonzero().flatten(), max(1, _CHUNK // rows.shape[1])):
        peaks = rows[some].abs().amax(dim=1)
        yield from some[(peaks > 0) & (peaks <= F16_NOTHING)].tolist()
