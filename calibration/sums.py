"""Statistics added up batch by batch, and how precisely products are computed while that happens.

The Gram matrix XᵀX is as much work as the forward pass itself, so what it costs decides what calibration costs. Only
its upper triangle is computed, in panels. Where the machine has units that round the factors and add in float32
(bfloat16 on CPUs with AMX, TF32 on CUDA), they are used for both: on SmolLM2, rounding the activations to bfloat16
moves the diagonal by at most 0.4 % and the factor that solvers make of the matrix by 0.3 %. Without such units nothing
changes: float32 stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor

from .statistics import Statistics

Precision = Literal["auto", "float32"]
"""`auto`: products on faster units, where the machine has them. `float32`: as exact as float32 is."""

_PANEL = 96
"""Rows of the Gram matrix computed at once, or a sixteenth of all: fewer waste less, in smaller products."""


@dataclass(frozen=True)
class Addend:
    """What one batch adds to the sums of one linear's input."""

    x: Tensor  # (tokens, in), each token times the root of how often it counts
    max_abs: Tensor  # a scalar
    tokens: int

    @classmethod
    def of(
        cls,
        inputs: Tensor,  # (tokens, in), real tokens only
        roots: Tensor | None = None,  # (tokens,) float32
    ) -> Self:
        """In float32 or better, whatever the layer is computed in."""
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return cls(wide if roots is None else wide * roots[:, None], largest(inputs), len(inputs))


class Sums:
    """What one linear's input adds up to, over all batches."""

    def __init__(self, like: Addend) -> None:
        width = like.x.shape[1]
        self._gram = like.x.new_zeros(width, width)
        self._panel = max(_PANEL, width // 16)
        self._max_abs = torch.zeros_like(like.max_abs)
        self._tokens = 0

    def adding(self, batches: Sequence[Addend]) -> list[Callable[[], None]]:
        """Calls that add the batches to a panel of the Gram matrix each, and may run side by side."""
        for batch in batches:
            self._max_abs = torch.maximum(self._max_abs, batch.max_abs)
            self._tokens += batch.tokens
        factors = [batch.x for batch in batches]
        return [partial(self._multiply, factors, start) for start in range(0, len(self._gram), self._panel)]

    def _multiply(self, factors: Sequence[Tensor], start: int) -> None:
        rows = slice(start, start + self._panel)
        panel = self._gram[rows, start:]
        for x in factors:
            panel.addmm_(x[:, rows].T, x[:, start:])

    def statistics(self) -> Statistics:
        """The sums so far; the object may be added to no more."""
        upper = self._gram.triu_()
        upper += upper.triu(1).T
        return Statistics(upper.float(), float(self._max_abs), self._tokens)


def largest(values: Tensor) -> Tensor:
    """Largest |value|, a scalar on the tensor's device; NaN where one is."""
    low, high = torch.aminmax(values)
    return torch.maximum(high, -low)


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Compute float32 matrix products this precisely while inside, and as before when left."""
    if precision == "float32":
        yield
        return
    # torch's own stubs lack the first.
    backends: tuple[tuple[Any, str], ...] = (
        (torch.backends.mkldnn.matmul, "bf16"),  # type: ignore[attr-defined]
        (torch.backends.cuda.matmul, "tf32"),
    )
    before = [backend.fp32_precision for backend, _ in backends]
    try:
        for backend, fast in backends:
            backend.fp32_precision = fast
        yield
    finally:
        for (backend, _), value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def rounding(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which a thread runs the layers of a float32 block this precisely, beside `products`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_autocasts(precision, device))


def arithmetic(precision: Precision, device: torch.device) -> str:
    """What decides the bits of a walk, in a word that a person can compare."""
    return "bfloat16 layers" if _autocasts(precision, device) else precision


def _autocasts(precision: Precision, device: torch.device) -> bool:
    return precision == "auto" and device.type == "cpu" and _supports("avx512_bf16") and not _supports("amx_tile")


def _supports(feature: str) -> bool:
    """Whether this CPU has it, and torch knows to ask."""
    asked = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(asked and asked())
