"""NaN and infinity in weights (rule `weight-nan`): one such value spreads to every logit."""

from __future__ import annotations

import torch
from torch import Tensor

from hermetiq.errors import Finding
from hermetiq.rules import finding

_CHUNK = 1 << 22
"""Values looked at together when they are counted, so that the masks stay small."""


def non_finite(
    tensor: Tensor,  # any shape, any float dtype
) -> int:
    """How many values are NaN or infinite.

    The usual answer, none, takes one pass without a temporary: `aminmax` carries a NaN through and shows an infinity
    as an extreme.
    """
    if tensor.numel() == 0 or all(extreme.isfinite() for extreme in torch.aminmax(tensor)):
        return 0
    parts = torch.split(tensor.reshape(-1), _CHUNK)
    return sum(part.numel() - int(torch.isfinite(part).sum()) for part in parts)


def check_finite(
    name: str,
    tensor: Tensor,  # any shape, any float dtype
    file: str,
) -> Finding | None:
    """A `weight-nan` finding for the tensor `name` of `file`, or None if all its values are finite."""
    count = non_finite(tensor)
    if not count:
        return None
    found = f"{count} of {tensor.numel()} values NaN or infinite"
    return finding("weight-nan", file=file, field=name, found=found, expected="finite numbers")
