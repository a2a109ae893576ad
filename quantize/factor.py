"""What error feedback needs of an input's statistics: one factorisation, whatever the formats, widths and groups.

GPTQ rounds column after column and lets the columns not yet rounded make up for each error. How much they can is all
in the Cholesky factor of the inverse Hessian (Frantar et al. 2022, algorithm 1), and that depends on the input and the
order alone. So it is made once for the layers that share an input, and every format is swept with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hermetiq.calibration.statistics import Statistics

from .spec import Order

DAMPING = 0.01
"""Share of the mean diagonal that is added to it, as in the paper."""
_LADDER = (
    (DAMPING, torch.float32, ""),
    (DAMPING, torch.float64, "float64"),
    (0.1, torch.float64, "damping 0.1"),
    (1.0, torch.float64, "damping 1.0"),
)
"""What is tried in turn until the factorisation holds (U11): damping, type, and what the report calls the step."""
ROUND_TO_NEAREST = "round to nearest"
"""The last step: no feedback between columns."""


@dataclass(frozen=True)
class Factor:
    """The inverse Hessian of one input, factorised: `(H + damping)⁻¹ = Uᵀ U` in the order of rounding.

    H is the Gram matrix over its mean diagonal.
    """

    order: Tensor  # (in,) int64: the column that is rounded first, second, …
    upper: Tensor  # (in, in) float32, upper triangular, in that order
    damping: float
    """Share of the mean diagonal."""
    step: str
    """What had to be done beyond the ordinary, empty where nothing had."""

    @property
    def sensitivity(self) -> Tensor:  # (in,)
        """What a squared rounding error in each column costs after feedback, in the columns' own order.

        Feedback undoes what later columns can express; the rest is 1 / U_jj² (GPTQ's own loss, equation 4). For the
        choice of grids that is a better weight than the diagonal of H, which counts what will be undone.
        """
        cost = torch.empty_like(self.upper.diagonal())
        cost[self.order] = self.upper.diagonal() ** -2
        return cost

    def hessian(
        self,
        gram: Tensor,  # (in, in)
    ) -> Tensor | None:  # (in, in)
        """What was factorised, in the columns' own order; None where it could not be and nothing may rely on it."""
        if self.step == ROUND_TO_NEAREST:
            return None
        scaled = gram / _mean(gram)
        scaled.diagonal().add_(self.damping)
        return scaled

    def folded(self, factors: Tensor) -> Factor:
        """The factor for inputs divided by `factors` (in,), weights being multiplied: no factorisation is needed."""
        return Factor(self.order, self.upper * factors[self.order], self.damping, self.step)


def factorize(statistics: Statistics, order: Order) -> Factor:
    """Factorise the inverse Hessian, raising damping and precision where it is not positive definite.

    A column that was never active has only its damping, hence no exchange with others: it is rounded to nearest (U37).

    Args:
        order: `plain` from left to right; otherwise the most active column first.
    """
    gram, diagonal = statistics.gram, statistics.gram.diagonal()
    if order == "plain":
        columns = torch.arange(len(gram), device=gram.device)
    else:
        columns = torch.argsort(diagonal, descending=True, stable=True)
    hessian = (gram / _mean(gram))[columns][:, columns]
    for damping, upper, step in _attempts(hessian):
        if upper is not None:
            return Factor(columns, upper.float(), damping, step)
    alone = (hessian.diagonal() + 1.0) ** -0.5
    return Factor(columns, torch.diag(alone), 1.0, ROUND_TO_NEAREST)


def _mean(gram: Tensor) -> Tensor:
    """Mean of the diagonal, and never zero."""
    return gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)


def _attempts(hessian: Tensor) -> Iterator[tuple[float, Tensor | None, str]]:
    for damping, dtype, step in _LADDER:
        yield damping, _inverse_factor(hessian.to(dtype), damping), step


def _inverse_factor(
    hessian: Tensor,  # (in, in), mean diagonal 1
    damping: float,
) -> Tensor | None:  # (in, in) upper triangular U with (H + damping)⁻¹ = Uᵀ U
    """None where the damped Hessian is not positive definite in its precision.

    Factorising H with its columns reversed gives H = R Rᵀ with R upper triangular, and then U = R⁻¹: one factorisation
    and one triangular solve in the place of the paper's Cholesky, inverse, Cholesky.
    """
    damped = hessian + torch.diag(torch.full_like(hessian.diagonal(), damping))
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(info):
        return None
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    upper: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return upper if bool(upper.isfinite().all()) else None
