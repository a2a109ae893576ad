"""What the sizes of activations give away: a model that is broken, or one that float16 cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from hermetiq.errors import Finding, Refusal
from hermetiq.rules import finding

from .statistics import Statistics

FLOAT16_MAX = 65504.0

_PLACE = "calibration"
"""Stands in a finding where others name a file: these faults show only when the model runs."""


def refuse_broken(peaks: Mapping[str, float]) -> None:
    """Stop where an activation is NaN or infinite: every statistic behind it is meaningless.

    Args:
        peaks: largest |activation| by module, in the order in which the modules ran.

    Raises:
        Refusal: `hessian-nan`, with the first module whose output is not finite.
    """
    for name, peak in peaks.items():
        if not isfinite(peak):
            raise Refusal(
                finding("hessian-nan", file=_PLACE, field=name, found=f"activations of {peak}", expected="finite ones")
            )


def refuse_overflow(inputs: Mapping[str, Statistics]) -> None:
    """Stop where finite activations are so large that the sum of their squares is not.

    Args:
        inputs: by the name of each linear's weight.

    Raises:
        Refusal: `hessian-nan`, with the first linear that takes them in.
    """
    for weight, item in inputs.items():
        # |gram[i, j]| is at most the larger of its two diagonal elements.
        if not item.gram.diagonal().isfinite().all():
            name, found = weight.removesuffix(".weight"), f"inputs of {item.max_abs:.1e}"
            raise Refusal(
                finding("hessian-nan", file=_PLACE, field=name, found=found, expected="squares that float32 holds")
            )


def fp16_findings(peaks: Mapping[str, float]) -> tuple[Finding, ...]:
    """The finding `fp16-range`, where an activation is beyond float16; nothing where all fit.

    Args:
        peaks: largest |activation| by module, of any number of blocks, in the order in which the modules ran.
    """
    beyond = {name: peak for name, peak in peaks.items() if peak > FLOAT16_MAX}
    if not beyond:
        return ()
    first, most = next(iter(beyond)), max(beyond, key=beyond.__getitem__)
    found = f"an activation of {beyond[first]:.0f}"
    if len(beyond) > 1:
        found += f"; {len(beyond)} modules in all, the largest {beyond[most]:.0f} in {most}"
    return (finding("fp16-range", file=_PLACE, field=first, found=found, expected=f"at most {FLOAT16_MAX:.0f}"),)
