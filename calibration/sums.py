"""Statistics added up batch by batch, and how precisely products are computed while that happens.

The Gram matrix XᵀX is as much work as the forward pass itself, so what it costs decides what calibration costs. Only
its upper triangle is computed, in panels. Where the machine has units that round the factors and add in float32
(bfloat16 on CPUs with AMX, TF32 on CUDA), they are used for both: on SmolLM2, rounding the activations to bfloat16
moves the diagonal by at most 0.4 % and the factor that solvers make of the matrix by 0.3 %. Without such units nothing
changes: float32 stays float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from .statistics import Statistics

Precision = Literal["auto", "float32"]
"""`auto`: products on faster units, where the machine has them. `float32`: as exact as float32 is."""

_PANEL = 192
"""Rows of the Gram matrix computed at once, or an eighth of all: fewer waste less, in smaller products."""


class Sums:
    """What one linear's input adds up to, over all batches."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self._gram = torch.zeros(width, width, dtype=wide, device=device)
        self._max_abs = torch.zeros((), dtype=wide, device=device)
        self._tokens = 0

    def add(
        self,
        inputs: Tensor,  # (tokens, in), real tokens only
    ) -> None:
        x = inputs.to(self._gram.dtype)
        self._multiply(x, 1)
        self._max_abs = torch.maximum(self._max_abs, largest(x))
        self._tokens += x.shape[0]

    def repeat(
        self,
        inputs: Tensor,  # (tokens, in), which were added
        times: int,
    ) -> None:
        """Let tokens count so many times more in the Gram matrix; they stay as many tokens as they are."""
        self._multiply(inputs.to(self._gram.dtype), times)

    def _multiply(
        self,
        x: Tensor,  # (tokens, in)
        times: int,
    ) -> None:
        panel = max(_PANEL, x.shape[1] // 8)
        for start in range(0, x.shape[1], panel):
            end = start + panel
            self._gram[start:end, start:].addmm_(x[:, start:end].T, x[:, start:], alpha=times)

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


@contextmanager
def layers(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the layers of a float32 block this precisely while inside."""
    with torch.autocast("cpu", torch.bfloat16, enabled=_autocasts(precision, device)), products(precision):
        yield


def arithmetic(precision: Precision, device: torch.device) -> str:
    """What decides the bits of a walk, in a word that a person can compare."""
    return "bfloat16 layers" if _autocasts(precision, device) else precision


def _autocasts(precision: Precision, device: torch.device) -> bool:
    return precision == "auto" and device.type == "cpu" and _supports("avx512_bf16") and not _supports("amx_tile")


def _supports(feature: str) -> bool:
    """Whether this CPU has it, and torch knows to ask."""
    asked = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(asked and asked())
