"""The last word on where answers end: what all blocks' rounding did to the terminator, undone in the final norm.

Each block is rounded for small errors of its own output. Their sum moves the mean log-probability of the terminator at
the ends of answers by some tenths of a nat either way, and answers stop too early or run on. The final norm's gains are
stored as they are in every format, and steer all predictions through one vector. They take the smallest change that
brings the mean back to the source's, where "smallest" is measured by what it does to all other predictions: to second
order their KL divergence is a quadratic form, the Fisher information, and its minimum under one linear constraint is
the natural gradient (Amari 1998, "Natural gradient works efficiently in learning", theorem 1).

The exchanges must be ones that nothing was calibrated on: on the others the solvers' errors look smaller than they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 0.25
"""Largest relative change of a gain, but for the rounding to its type. On SmolLM2 that takes back a whole nat for one
percent more KL; a mean farther off has another cause."""
_CHUNK = 64
"""Tokens whose predictions over the whole vocabulary are held at a time."""
_DRAWS = 2
"""Next tokens drawn from each prediction to estimate the Fisher information."""
_DAMPING = 0.01
"""Share of the Fisher information's mean diagonal that is added to it: directions that no token showed cost too."""
_HALVINGS = 24
"""Of the bracket of the step's length: afterwards it is finer than float32's spacing of the gains."""
_EXACT = 1e-3
"""Nats from the target that need no further halving: what a few hundred ends say is fifty times as uncertain."""


@dataclass(frozen=True)
class Settled:
    """The final norm's gains, and what they make of the terminator."""

    gains: Tensor
    """(hidden,) in the type of the gains given."""
    before: float
    """Mean log-probability of the terminator at the ends with the old gains, in nats."""
    after: float
    """The same with the new gains, as they are stored."""


def settle(
    gains: Tensor,  # (hidden,) float16, bfloat16 or float32
    ends: Tensor,  # (ends, hidden) float32
    others: Tensor,  # (tokens, hidden) float32
    head: Tensor,  # (vocabulary, hidden) float32
    terminator: int,
    target: float,
) -> Settled:
    """Bring the terminator's mean log-probability at the ends as close to `target` as gains within `LIMIT` can.

    The result is never farther from the target than the gains given, and is those themselves where nothing is better,
    or where the states say nothing: they hold values that are not finite, there are no `others`, or the gradient is 0.

    Args:
        gains: of the final norm, in the type in which they are stored.
        ends: states behind that norm at the last token of each answer, where the terminator is due.
        others: states behind that norm of tokens whose predictions are to stay as they are.
        head: what makes logits of those states.
        terminator: its row of the head.
        target: the mean in the source, in nats.

    Raises:
        ValueError: there are no ends.
    """
    if not len(ends):
        raise ValueError("no ends of answers to settle the terminator by")
    old = gains.float()
    before, gradient = _at_ends(ends, head, terminator)
    best = Settled(gains, before, before)
    direction = _cheapest(gradient, _fisher(others, head))
    if direction is None:
        return best
    low, high = (0.0, LIMIT) if before < target else (-LIMIT, 0.0)
    for _ in range(_HALVINGS):
        length = (low + high) / 2
        # A step is no larger than the spacing of float16: only what rounding leaves of it counts.
        trial = (old * (1 + length * direction)).to(gains.dtype)
        factors = torch.where(old == 0, 1.0, trial.float() / old)
        after, gradient = _at_ends(ends * factors, head, terminator)
        if abs(after - target) < abs(best.after - target):
            best = Settled(trial, before, after)
        if abs(after - target) < _EXACT:
            break
        # The mean is concave: behind its top, a longer step leads away from a target that is still higher.
        rising = bool(gradient @ (direction / factors) > 0)
        low, high = (length, high) if after < target and rising else (low, length)
    return best


def _at_ends(
    ends: Tensor,  # (ends, hidden)
    head: Tensor,  # (vocabulary, hidden)
    terminator: int,
) -> tuple[float, Tensor]:  # nats, (hidden,)
    """The terminator's mean log-probability, and its gradient by relative changes of the gains."""
    total, gradient = 0.0, torch.zeros_like(ends[0])
    for states in torch.split(ends, _CHUNK):
        logs = (states @ head.T).log_softmax(-1)
        total += float(logs[:, terminator].sum())
        gradient += (states * (head[terminator] - logs.exp_() @ head)).sum(0)
    return total / len(ends), gradient / len(ends)


def _fisher(
    others: Tensor,  # (tokens, hidden)
    head: Tensor,  # (vocabulary, hidden)
) -> Tensor:  # (hidden, hidden)
    """Fisher information of the relative changes of the gains, by tokens drawn from the predictions themselves."""
    # By inverse distribution functions, so that one seed draws the same tokens on every device.
    drawn = torch.rand(len(others), _DRAWS, generator=torch.Generator().manual_seed(0)).to(others.device)
    fisher = torch.zeros(others.shape[1], others.shape[1], device=others.device)
    for states, levels in zip(torch.split(others, _CHUNK), torch.split(drawn, _CHUNK), strict=True):
        chances = (states @ head.T).softmax(-1)
        tokens = torch.searchsorted(chances.cumsum(-1), levels, right=True).clamp_(max=len(head) - 1)
        scores = (states * (head[tokens.T] - chances @ head)).flatten(0, 1)  # (draws * chunk, hidden)
        fisher += scores.T @ scores
    return fisher / drawn.numel()


def _cheapest(
    gradient: Tensor,  # (hidden,)
    fisher: Tensor,  # (hidden, hidden)
) -> Tensor | None:  # (hidden,)
    """The direction that gains most for what it costs, its largest entry 1; none if either is zero or not finite."""
    # The diagonal bounds all other entries.
    damping = _DAMPING * float(fisher.diagonal().mean())
    if not (gradient.any() and gradient.isfinite().all() and 0 < damping < math.inf):
        return None
    damped = fisher + damping * torch.eye(len(fisher), device=fisher.device)
    direction: Tensor = torch.linalg.solve(damped, gradient)
    return direction / direction.abs().max()
