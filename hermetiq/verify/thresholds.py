"""How far each type may move from its source before the artifact is no longer the same chat model.

One table, so that nobody has to invent a number. The limits are what a good file of a small model keeps, half as much
again: SmolLM2-135M measured KL 0.002 at Q8_0, 0.009 at Q6_K, 0.07 to 0.19 at five bits and 0.15 to 0.47 at four, where
one answer in eight went on although the source preferred its end by 1.5 nats (GPTQ, KL 0.15). Larger
models lose less (Llama-3-8B, in llama.cpp's `tools/perplexity/README.md`: Q8_0 0.0014, Q4_K_M 0.031, Q3_K_M 0.10, Q2_K
0.45), so their KL limit falls with the root of their size, down to a quarter. The table catches a file that is broken;
`--max-kl` asks for one that is good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hermetiq.errors import HermetiqError
from hermetiq.quantize.spec import Spec


@dataclass(frozen=True)
class Limits:
    """What one type must keep. Differences are source against artifact, on held-out chats."""

    kl: float
    """Largest mean KL(source || artifact), nats per token."""
    top1: float
    """Smallest share of tokens where both have the same first choice."""
    terminator_drop: float
    """Largest loss of the terminator's mean log-probability where assistant turns end, in nats."""
    stop_margin: float
    """Where the source prefers stopping or going on by less (nats), either is right."""


EXACT = Limits(kl=0.001, top1=0.995, terminator_drop=0.02, stop_margin=0.1)
BFLOAT = Limits(kl=0.02, top1=0.96, terminator_drop=0.2, stop_margin=0.3)
EIGHT = Limits(kl=0.02, top1=0.95, terminator_drop=0.2, stop_margin=0.5)
SIX = Limits(kl=0.04, top1=0.92, terminator_drop=0.3, stop_margin=0.7)
FIVE = Limits(kl=0.3, top1=0.70, terminator_drop=0.5, stop_margin=1.0)
FOUR = Limits(kl=0.7, top1=0.55, terminator_drop=0.9, stop_margin=2.25)
THREE = Limits(kl=1.2, top1=0.45, terminator_drop=1.5, stop_margin=3.0)
TWO = Limits(kl=2.5, top1=0.35, terminator_drop=3.0, stop_margin=4.0)

GGUF: dict[str, Limits] = {
    **dict.fromkeys(("F32", "F16"), EXACT),
    "BF16": BFLOAT,
    "Q8_0": EIGHT,
    "Q6_K": SIX,
    **dict.fromkeys(("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"), FIVE),
    **dict.fromkeys(("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"), FOUR),
    **dict.fromkeys(("Q3_K_L", "Q3_K_M", "Q3_K_S"), THREE),
    "Q2_K": TWO,
}
GRIDS: dict[int, tuple[Limits, Limits]] = {8: (EIGHT, SIX), 4: (FOUR, THREE), 3: (THREE, TWO), 2: (TWO, TWO)}
"""By bits of a code: for groups of at most `FINE` columns, and for coarser ones."""
FINE = 128


def _by_grid(spec: Spec) -> Limits:
    fine, coarse = GRIDS[spec.linear.bits]
    return fine if (spec.linear.group_size or math.inf) <= FINE else coarse


MIXED: tuple[tuple[float, Limits], ...] = ((2, TWO), (3, THREE), (4, FOUR), (5, FIVE), (6, SIX), (8, EIGHT))
"""By stored bits per weight of a format that mixes widths, scales and all; what lies between is interpolated.

A plain type of k bits stores about k + 1/4, so it is given a little more room; choosing widths well makes up for that.
"""


def _by_size(spec: Spec) -> Limits:
    """KL falls by a factor for each bit, so it is interpolated by its logarithm; the rest in a straight line."""
    bpw = spec.mixed.bpw
    (low, worse), (high, better) = next(pair for pair in pairwise(MIXED) if bpw <= pair[1][0])
    share = (bpw - low) / (high - low)

    def line(name: str) -> float:
        before, after = getattr(worse, name), getattr(better, name)
        return float(before + share * (after - before))

    return Limits(
        kl=worse.kl ** (1 - share) * better.kl**share,
        top1=line("top1"),
        terminator_drop=line("terminator_drop"),
        stop_margin=line("stop_margin"),
    )


LIMITS: dict[str, Callable[[Spec], Limits]] = {
    "gguf": lambda spec: GGUF[spec.recipe],
    "gptq": _by_grid,
    "awq": _by_grid,
    "exl2": _by_size,
}
"""By format."""

SMALL_MODEL = 135_000_000
"""Weights of the model that the table was measured on."""
LARGE_MODEL_SHARE = 0.25
"""Of the table's KL, what a model of two billion weights and more may lose: 1.4 to 7 times the published figures."""

RUNTIME_KL = 0.03
"""Largest mean KL(walk || runtime), nats per token, between two computations of one file.

Rounding of activations and of the key-value cache takes 0.007 in a model of 135M weights (the larger, the less)."""


def limits_for(spec: Spec, *, weights: int, max_kl: float | Mapping[str, float] | None = None) -> Limits:
    """The limits of a type in a model of so many weights.

    Args:
        max_kl: nats per token, in place of its KL limit: for all types, or by spec or format, of which the spec counts.
    """
    limits = LIMITS[spec.format](spec)
    share = min(1.0, max(LARGE_MODEL_SHARE, math.sqrt(SMALL_MODEL / weights)))
    asked = max_kl.get(str(spec), max_kl.get(spec.format)) if isinstance(max_kl, Mapping) else max_kl
    return replace(limits, kl=limits.kl * share if asked is None else asked)


def require_served(max_kl: float | Mapping[str, float] | None, specs: Sequence[Spec]) -> None:
    """Refuse a limit that no artifact is held to, as it may be the misspelt one of another.

    Raises:
        HermetiqError: a key of `max_kl` is neither a spec nor a format of `specs`.
    """
    served = dict.fromkeys(name for spec in specs for name in (str(spec), spec.format))
    for name in max_kl if isinstance(max_kl, Mapping) else ():
        if name not in served:
            raise HermetiqError(
                f"no artifact is {name!r}", where="max_kl", remedy=f"give a limit to one of {', '.join(served)}"
            )
